// Graphs. A graph runs its nodes in the order in which they were made, which respects every edge; branches that could
// run side by side run one after another.
#include <algorithm>

#include "driver.hpp"

using namespace tierline::fakecuda;

namespace {

constexpr std::size_t kLongestRun = 4096;  // kernel nodes that are put into the device's queue at once

// Copies of the nodes, child graphs laid out flat.
void flatten(const Graph& graph, GraphExec& exec) {
    for (Node* node : graph.nodes) {
        if (node->tag != Tag::node) continue;
        if (node->type == CU_GRAPH_NODE_TYPE_GRAPH && node->child != nullptr) {
            flatten(*node->child, exec);
            continue;
        }
        auto* copy = new Node(*node);
        exec.nodes.push_back(copy);
        exec.copies[node] = copy;
    }
}

CUresult instantiate(Entry entry, CUgraphExec* out, CUgraph handle, CUDA_GRAPH_INSTANTIATE_PARAMS* parameters) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        const auto* graph = to<Graph>(handle, Tag::graph);
        if (graph == nullptr || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        auto exec = std::make_unique<GraphExec>();
        flatten(*graph, *exec);
        if (parameters != nullptr) {
            parameters->hErrNode_out = nullptr;
            parameters->result_out = CUDA_GRAPH_INSTANTIATE_SUCCESS;
        }
        if (log_enabled()) call_detail().number("nodes", static_cast<std::int64_t>(exec->nodes.size()));
        *out = from<CUgraphExec>(exec.release());
        return CUDA_SUCCESS;
    });
}

CUresult run_kernels(Session& session, Stream& stream, const std::vector<KernelId>& kernels) {
    if (kernels.empty()) return CUDA_SUCCESS;
    return enqueue(session, stream, [&] {
        return driver().host.graph(stream.engine, kernels.data(), static_cast<std::int32_t>(kernels.size()));
    });
}

CUresult run_event(Session& session, Stream& stream, Event& event, bool record) {
    Driver& d = driver();
    if (event.engine < 0) {
        if (!record) return CUDA_SUCCESS;
        if (const Status made = d.host.create_event(event.engine); made != Status::ok) return to_result(made);
    }
    if (record) event.recorded = true;
    return enqueue(session, stream, [&] {
        return record ? d.host.event(stream.engine, event.engine) : d.host.wait(stream.engine, event.engine);
    });
}

CUresult run_other(Session& session, Stream& stream, const Node& node) {
    switch (node.type) {
        case CU_GRAPH_NODE_TYPE_MEMCPY:
        case CU_GRAPH_NODE_TYPE_MEMSET:
            if (node.source != nullptr) move_bytes(node.destination, node.source, static_cast<std::size_t>(node.bytes));
            return enqueue(session, stream,
                           [&] { return driver().host.copy(stream.engine, node.bytes, node.direction); });
        case CU_GRAPH_NODE_TYPE_HOST: return enqueue_host_call(session, stream, node.host, node.user_data);
        case CU_GRAPH_NODE_TYPE_EVENT_RECORD: return run_event(session, stream, *node.event, true);
        case CU_GRAPH_NODE_TYPE_WAIT_EVENT: return run_event(session, stream, *node.event, false);
        default: return CUDA_SUCCESS;
    }
}

CUresult run(Session& session, Stream& stream, const GraphExec& exec) {
    std::vector<KernelId> kernels;
    driver().host.pass(config().launch_ns);
    note_launch();
    for (const Node* node : exec.nodes) {
        CUresult result = CUDA_SUCCESS;
        if (node->type == CU_GRAPH_NODE_TYPE_KERNEL) {
            KernelId number = -1;
            result = kernel_number(node->launch, number);
            kernels.push_back(number);
            if (result == CUDA_SUCCESS && kernels.size() < kLongestRun) continue;
        }
        if (result == CUDA_SUCCESS) result = run_kernels(session, stream, kernels);
        kernels.clear();
        if (result == CUDA_SUCCESS) result = run_other(session, stream, *node);
        if (result != CUDA_SUCCESS) return result;
    }
    return run_kernels(session, stream, kernels);
}

CUresult launch(Entry entry, CUgraphExec handle, CUstream stream_handle) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        if (const CUresult gate = check_ticket(); gate != CUDA_SUCCESS) return gate;
        const auto* exec = to<GraphExec>(handle, Tag::graph_exec);
        Stream* stream = find_stream(stream_handle);
        if (exec == nullptr || stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (const CUresult result = before_enqueue(*stream); result != CUDA_SUCCESS) return result;
        if (log_enabled())
            call_detail()
                .text("stream", stream_text(*stream))
                .number("nodes", static_cast<std::int64_t>(exec->nodes.size()));
        if (stream->capture == nullptr) return run(session, *stream, *exec);
        auto* child = new Graph;
        for (const Node* node : exec->nodes) child->nodes.push_back(new Node(*node));
        capture_node(*stream, CU_GRAPH_NODE_TYPE_GRAPH)->child = child;
        return CUDA_SUCCESS;
    });
}

CUresult upload(Entry entry, CUgraphExec handle, CUstream stream) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        return to<GraphExec>(handle, Tag::graph_exec) != nullptr && find_stream(stream) != nullptr
                   ? CUDA_SUCCESS
                   : CUDA_ERROR_INVALID_HANDLE;
    });
}

CUresult list_nodes(const std::vector<Node*>& nodes, CUgraphNode* out, std::size_t* count) {
    if (count == nullptr) return CUDA_ERROR_INVALID_VALUE;
    if (out == nullptr) {
        *count = nodes.size();
        return CUDA_SUCCESS;
    }
    for (std::size_t i = 0; i < *count; ++i) out[i] = i < nodes.size() ? from<CUgraphNode>(nodes[i]) : nullptr;
    *count = std::min(*count, nodes.size());
    return CUDA_SUCCESS;
}

// Fills the fields that both forms of the parameters have.
template <class Parameters>
CUresult get_parameters(CUgraphNode handle, Parameters* out) {
    auto* node = to<Node>(handle, Tag::node);
    if (node == nullptr || out == nullptr || node->type != CU_GRAPH_NODE_TYPE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
    *out = Parameters{};
    const Shape& s = node->launch.shape;
    out->func = from<CUfunction>(node->launch.function);
    out->gridDimX = s[0];
    out->gridDimY = s[1];
    out->gridDimZ = s[2];
    out->blockDimX = s[3];
    out->blockDimY = s[4];
    out->blockDimZ = s[5];
    out->sharedMemBytes = s[6];
    node->argument_pointers.clear();
    for (const std::size_t offset : node->launch.offsets)
        node->argument_pointers.push_back(node->launch.arguments.data() + offset);
    out->kernelParams = node->argument_pointers.empty() ? nullptr : node->argument_pointers.data();
    return CUDA_SUCCESS;
}

template <class Parameters>
CUresult set_parameters(Node& node, const Parameters* from_user, CUkernel kernel) {
    if (from_user == nullptr) return CUDA_ERROR_INVALID_VALUE;
    Launch launch;
    launch.function = function_of(from_user->func != nullptr ? from_user->func : reinterpret_cast<CUfunction>(kernel));
    if (launch.function == nullptr) return CUDA_ERROR_INVALID_HANDLE;
    launch.shape = {from_user->gridDimX,  from_user->gridDimY,  from_user->gridDimZ,      from_user->blockDimX,
                    from_user->blockDimY, from_user->blockDimZ, from_user->sharedMemBytes};
    if (const CUresult result = check_launch(launch); result != CUDA_SUCCESS) return result;
    if (const CUresult result = read_arguments(launch, from_user->kernelParams, from_user->extra);
        result != CUDA_SUCCESS)
        return result;
    node.type = CU_GRAPH_NODE_TYPE_KERNEL;
    node.launch = std::move(launch);
    return CUDA_SUCCESS;
}

CUkernel kernel_of(const CUDA_KERNEL_NODE_PARAMS_v1*) { return nullptr; }
CUkernel kernel_of(const CUDA_KERNEL_NODE_PARAMS_v2* parameters) {
    return parameters != nullptr ? parameters->kern : nullptr;
}

template <class Parameters>
CUresult set_node(Entry entry, CUgraphNode handle, const Parameters* parameters) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        auto* node = to<Node>(handle, Tag::node);
        if (node == nullptr || node->type != CU_GRAPH_NODE_TYPE_KERNEL) return CUDA_ERROR_INVALID_VALUE;
        return set_parameters(*node, parameters, kernel_of(parameters));
    });
}

template <class Parameters>
CUresult set_exec_node(Entry entry, CUgraphExec exec_handle, CUgraphNode handle, const Parameters* parameters) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        auto* exec = to<GraphExec>(exec_handle, Tag::graph_exec);
        if (exec == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        const auto found = exec->copies.find(to<Node>(handle, Tag::node));
        if (found == exec->copies.end() || found->second->type != CU_GRAPH_NODE_TYPE_KERNEL)
            return CUDA_ERROR_INVALID_VALUE;
        return set_parameters(*found->second, parameters, kernel_of(parameters));
    });
}

// The nodes take the work of the other graph's, if that has the same nodes in the same order.
CUresult update(Entry entry, CUgraphExec exec_handle, CUgraph handle, CUgraphExecUpdateResult* result) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        auto* exec = to<GraphExec>(exec_handle, Tag::graph_exec);
        const auto* graph = to<Graph>(handle, Tag::graph);
        if (exec == nullptr || graph == nullptr || result == nullptr) return CUDA_ERROR_INVALID_VALUE;
        GraphExec changed;
        flatten(*graph, changed);
        bool same = changed.nodes.size() == exec->nodes.size();
        for (std::size_t i = 0; same && i < changed.nodes.size(); ++i)
            same = changed.nodes[i]->type == exec->nodes[i]->type;
        *result = same ? CU_GRAPH_EXEC_UPDATE_SUCCESS : CU_GRAPH_EXEC_UPDATE_ERROR;
        if (!same) return CUDA_ERROR_GRAPH_EXEC_UPDATE_FAILURE;
        for (std::size_t i = 0; i < changed.nodes.size(); ++i) *exec->nodes[i] = *changed.nodes[i];
        return CUDA_SUCCESS;
    });
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuGraphCreate(CUgraph* out, unsigned int flags) {
    return call(Entry::cuGraphCreate, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr || flags != 0) return CUDA_ERROR_INVALID_VALUE;
        *out = from<CUgraph>(new Graph);
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphDestroy(CUgraph handle) {
    return call(Entry::cuGraphDestroy, Need::device, [&](Session&) -> CUresult {
        auto* graph = to<Graph>(handle, Tag::graph);
        if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
        for (Node* node : graph->nodes) node->tag = Tag::dead;
        graph->tag = Tag::dead;
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphClone(CUgraph* out, CUgraph handle) {
    return call(Entry::cuGraphClone, Need::device, [&](Session&) -> CUresult {
        const auto* graph = to<Graph>(handle, Tag::graph);
        if (graph == nullptr || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        auto* clone = new Graph;
        for (const Node* node : graph->nodes) {
            clone->nodes.push_back(new Node(*node));
            clone->nodes.back()->graph = clone;
        }
        *out = from<CUgraph>(clone);
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphInstantiate(CUgraphExec* out, CUgraph graph, CUgraphNode*, char*, std::size_t) {
    return instantiate(Entry::cuGraphInstantiate, out, graph, nullptr);
}
CUresult cuGraphInstantiate_v2(CUgraphExec* out, CUgraph graph, CUgraphNode*, char*, std::size_t) {
    return instantiate(Entry::cuGraphInstantiate_v2, out, graph, nullptr);
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec* out, CUgraph graph, unsigned long long) {
    return instantiate(Entry::cuGraphInstantiateWithFlags, out, graph, nullptr);
}
CUresult cuGraphInstantiateWithParams(CUgraphExec* out, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS* parameters) {
    return instantiate(Entry::cuGraphInstantiateWithParams, out, graph, parameters);
}
CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec* out, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS* parameters) {
    return instantiate(Entry::cuGraphInstantiateWithParams_ptsz, out, graph, parameters);
}

CUresult cuGraphExecDestroy(CUgraphExec handle) {
    return call(Entry::cuGraphExecDestroy, Need::device, [&](Session&) -> CUresult {
        auto* exec = to<GraphExec>(handle, Tag::graph_exec);
        if (exec == nullptr) return CUDA_ERROR_INVALID_VALUE;
        exec->tag = Tag::dead;
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphGetNodes(CUgraph handle, CUgraphNode* out, std::size_t* count) {
    return call(Entry::cuGraphGetNodes, Need::device, [&](Session&) -> CUresult {
        const auto* graph = to<Graph>(handle, Tag::graph);
        return graph != nullptr ? list_nodes(graph->nodes, out, count) : CUDA_ERROR_INVALID_VALUE;
    });
}

CUresult cuGraphGetRootNodes(CUgraph handle, CUgraphNode* out, std::size_t* count) {
    return call(Entry::cuGraphGetRootNodes, Need::device, [&](Session&) -> CUresult {
        const auto* graph = to<Graph>(handle, Tag::graph);
        if (graph == nullptr) return CUDA_ERROR_INVALID_VALUE;
        std::vector<Node*> roots;
        std::copy_if(graph->nodes.begin(), graph->nodes.end(), std::back_inserter(roots),
                     [](const Node* node) { return node->after.empty(); });
        return list_nodes(roots, out, count);
    });
}

CUresult cuGraphNodeGetType(CUgraphNode handle, CUgraphNodeType* out) {
    return call(Entry::cuGraphNodeGetType, Need::device, [&](Session&) -> CUresult {
        const auto* node = to<Node>(handle, Tag::node);
        if (node == nullptr || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *out = node->type;
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphChildGraphNodeGetGraph(CUgraphNode handle, CUgraph* out) {
    return call(Entry::cuGraphChildGraphNodeGetGraph, Need::device, [&](Session&) -> CUresult {
        const auto* node = to<Node>(handle, Tag::node);
        if (node == nullptr || out == nullptr || node->type != CU_GRAPH_NODE_TYPE_GRAPH)
            return CUDA_ERROR_INVALID_VALUE;
        *out = from<CUgraph>(node->child);
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode* node, CUgraphExecUpdateResult* result) {
    if (node != nullptr) *node = nullptr;
    return update(Entry::cuGraphExecUpdate, exec, graph, result);
}
CUresult cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo* info) {
    if (info != nullptr) *info = CUgraphExecUpdateResultInfo{};
    return update(Entry::cuGraphExecUpdate_v2, exec, graph, info != nullptr ? &info->result : nullptr);
}

CUresult cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v1* out) {
    return call(Entry::cuGraphKernelNodeGetParams, Need::device, [&](Session&) { return get_parameters(node, out); });
}
CUresult cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS_v2* out) {
    return call(Entry::cuGraphKernelNodeGetParams_v2, Need::device,
                [&](Session&) { return get_parameters(node, out); });
}
CUresult cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v1* parameters) {
    return set_node(Entry::cuGraphKernelNodeSetParams, node, parameters);
}
CUresult cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS_v2* parameters) {
    return set_node(Entry::cuGraphKernelNodeSetParams_v2, node, parameters);
}
CUresult cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
                                        const CUDA_KERNEL_NODE_PARAMS_v1* parameters) {
    return set_exec_node(Entry::cuGraphExecKernelNodeSetParams, exec, node, parameters);
}
CUresult cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
                                           const CUDA_KERNEL_NODE_PARAMS_v2* parameters) {
    return set_exec_node(Entry::cuGraphExecKernelNodeSetParams_v2, exec, node, parameters);
}

CUresult cuGraphAddKernelNode_v2(CUgraphNode* out, CUgraph handle, const CUgraphNode* after, std::size_t count,
                                 const CUDA_KERNEL_NODE_PARAMS_v2* parameters) {
    return call(Entry::cuGraphAddKernelNode_v2, Need::context, [&](Session&) -> CUresult {
        auto* graph = to<Graph>(handle, Tag::graph);
        if (graph == nullptr || out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        auto node = std::make_unique<Node>();
        if (const CUresult result = set_parameters(*node, parameters, kernel_of(parameters)); result != CUDA_SUCCESS)
            return result;
        node->graph = graph;
        for (std::size_t i = 0; i < count; ++i) {
            auto* earlier = to<Node>(after[i], Tag::node);
            if (earlier == nullptr) return CUDA_ERROR_INVALID_VALUE;
            earlier->has_dependents = true;
            node->after.push_back(earlier);
        }
        *out = from<CUgraphNode>(node.get());
        graph->nodes.push_back(node.release());
        return CUDA_SUCCESS;
    });
}

CUresult cuGraphLaunch(CUgraphExec exec, CUstream stream) { return launch(Entry::cuGraphLaunch, exec, stream); }
CUresult cuGraphLaunch_ptsz(CUgraphExec exec, CUstream stream) {
    return launch(Entry::cuGraphLaunch_ptsz, exec, own_default(stream));
}
CUresult cuGraphUpload(CUgraphExec exec, CUstream stream) { return upload(Entry::cuGraphUpload, exec, stream); }
CUresult cuGraphUpload_ptsz(CUgraphExec exec, CUstream stream) {
    return upload(Entry::cuGraphUpload_ptsz, exec, own_default(stream));
}

}  // extern "C"
#pragma GCC visibility pop
