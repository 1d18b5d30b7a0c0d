// Captures and graphs. Between begin and end nothing of ours goes into the stream, and nothing in it is held.
#include "guarded.hpp"
#include "hooks.hpp"
#include "session.hpp"

namespace tierline::interpose {

namespace {

template <class Real>
CUresult begin(CUstream stream, bool per_thread, Real&& real) {
    Session* owner = session();
    StreamEntry* entry = nullptr;
    if (owner != nullptr) {
        guarded([&] {
            entry = owner->streams.entry(stream, per_thread);
            if (entry != nullptr) owner->captures.beginning(*entry);
        });
    }
    const CUresult result = real();
    if (result != CUDA_SUCCESS && entry != nullptr) owner->captures.over(*entry);
    return result;
}

void remember(CUresult result, const CUgraphExec* exec, CUgraph graph) {
    Session* owner = result == CUDA_SUCCESS && exec != nullptr ? session() : nullptr;
    if (owner != nullptr) guarded([&] { owner->captures.instantiated(*exec, graph); });
}

}  // namespace

CUresult begin_capture_v1(Site<Fn_cuStreamBeginCapture> site, CUstream stream) {
    return begin(stream, site.per_thread, [&] { return site.real(stream); });
}

CUresult begin_capture(Site<Fn_cuStreamBeginCapture_v2> site, CUstream stream, CUstreamCaptureMode mode) {
    return begin(stream, site.per_thread, [&] { return site.real(stream, mode); });
}

CUresult begin_capture_to_graph(Site<Fn_cuStreamBeginCaptureToGraph> site, CUstream stream, CUgraph graph,
                                const CUgraphNode* dependencies, const CUgraphEdgeData* data, size_t count,
                                CUstreamCaptureMode mode) {
    return begin(stream, site.per_thread, [&] { return site.real(stream, graph, dependencies, data, count, mode); });
}

CUresult end_capture(Site<Fn_cuStreamEndCapture> site, CUstream stream, CUgraph* graph) {
    const CUresult result = site.real(stream, graph);
    // Also when it failed: an invalidated capture is over. From another thread than began it, it goes on.
    Session* session = session_if_any();
    if (session != nullptr && result != CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD) {
        guarded([&] {
            if (StreamEntry* entry = session->streams.entry(stream, site.per_thread)) session->captures.over(*entry);
        });
    }
    return result;
}

CUresult graph_instantiate_v1(Site<Fn_cuGraphInstantiate> site, CUgraphExec* exec, CUgraph graph,
                              CUgraphNode* error_node, char* log, size_t log_bytes) {
    const CUresult result = site.real(exec, graph, error_node, log, log_bytes);
    remember(result, exec, graph);
    return result;
}

CUresult graph_instantiate(Site<Fn_cuGraphInstantiateWithFlags> site, CUgraphExec* exec, CUgraph graph,
                           unsigned long long flags) {
    const CUresult result = site.real(exec, graph, flags);
    remember(result, exec, graph);
    return result;
}

CUresult graph_instantiate_with_params(Site<Fn_cuGraphInstantiateWithParams> site, CUgraphExec* exec, CUgraph graph,
                                       CUDA_GRAPH_INSTANTIATE_PARAMS* params) {
    const CUresult result = site.real(exec, graph, params);
    remember(result, exec, graph);
    return result;
}

CUresult graph_exec_update(Site<Fn_cuGraphExecUpdate_v2> site, CUgraphExec exec, CUgraph graph,
                           CUgraphExecUpdateResultInfo* info) {
    const CUresult result = site.real(exec, graph, info);
    remember(result, &exec, graph);
    return result;
}

CUresult graph_exec_destroy(Site<Fn_cuGraphExecDestroy> site, CUgraphExec exec) {
    Session* session = session_if_any();
    if (session != nullptr) guarded([&] { session->captures.destroyed(exec); });
    return site.real(exec);
}

}  // namespace tierline::interpose
