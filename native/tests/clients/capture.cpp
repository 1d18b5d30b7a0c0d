// Stream capture while other streams are busy, and while other threads ask about events in various modes.
#include <thread>

#include "linked.hpp"

namespace {

CUcontext g_context = nullptr;

// The status of an event query from another thread that has exchanged its mode for `mode`.
int query_elsewhere(CUevent event, CUstreamCaptureMode mode) {
    int result = -1;
    std::thread([&] {
        cuCtxSetCurrent(g_context);
        cuThreadExchangeStreamCaptureMode(&mode);
        result = cuEventQuery(event);
        cuThreadExchangeStreamCaptureMode(&mode);
    }).join();
    return result;
}

struct Outcome {
    int query, end;
    bool graph;
};

// One kernel is captured, an event that is not part of it is asked about from elsewhere, capture ends.
Outcome attempt(CUfunction kernel, CUstream stream, CUevent event, CUstreamCaptureMode capture,
                CUstreamCaptureMode asker) {
    Outcome out{};
    CUgraph graph = nullptr;
    client::must(cuStreamBeginCapture_v2(stream, capture), "cuStreamBeginCapture");
    client::must(client::launch(kernel, stream), "cuLaunchKernel");
    out.query = query_elsewhere(event, asker);
    out.end = cuStreamEndCapture(stream, &graph);
    out.graph = graph != nullptr;
    if (graph != nullptr) cuGraphDestroy(graph);
    return out;
}

void print(const char* name, const Outcome& outcome) {
    std::printf("\"%s\": {\"query\": %d, \"end\": %d, \"graph\": %s}, ", name, outcome.query, outcome.end,
                outcome.graph ? "true" : "false");
}

}  // namespace

int main(int count, char** values) {
    const long long busy_launches = client::option(count, values, "--busy", 200);
    client::start();
    client::must(cuDevicePrimaryCtxRetain(&g_context, 0), "cuDevicePrimaryCtxRetain");
    const CUmodule module = client::load();
    const CUfunction kernel = client::function(module, "compute_kernel");
    const CUfunction tiny = client::function(module, "tiny_kernel");
    const CUstream stream = client::stream();
    const CUstream side = client::stream();
    const CUstream other = client::stream();
    CUevent done = nullptr;
    client::must(cuEventCreate(&done, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    client::must(client::launch(tiny, other), "cuLaunchKernel");
    client::must(cuEventRecord(done, other), "cuEventRecord");
    client::must(cuStreamSynchronize(other), "cuStreamSynchronize");

    // A graph of two branches, captured while another thread keeps another stream busy.
    int busy_result = 0;
    std::thread busy([&] {
        cuCtxSetCurrent(g_context);
        for (long long i = 0; i < busy_launches && busy_result == 0; ++i)
            busy_result = client::launch(kernel, other, 66, static_cast<int>(i));
    });
    CUevent fork = nullptr;
    CUevent join = nullptr;
    client::must(cuEventCreate(&fork, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    client::must(cuEventCreate(&join, CU_EVENT_DISABLE_TIMING), "cuEventCreate");
    CUgraph graph = nullptr;
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    client::must(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL), "cuStreamBeginCapture");
    client::must(client::launch(kernel, stream), "cuLaunchKernel");
    client::must(cuEventRecord(fork, stream), "cuEventRecord");
    client::must(cuStreamWaitEvent(side, fork, 0), "cuStreamWaitEvent");
    client::must(client::launch(tiny, side), "cuLaunchKernel");
    client::must(cuStreamIsCapturing(side, &status), "cuStreamIsCapturing");
    client::must(client::launch(tiny, stream), "cuLaunchKernel");
    client::must(cuEventRecord(join, side), "cuEventRecord");
    client::must(cuStreamWaitEvent(stream, join, 0), "cuStreamWaitEvent");
    client::must(cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    busy.join();
    client::must(busy_result, "cuLaunchKernel of the busy stream");
    std::size_t nodes = 0;
    client::must(cuGraphGetNodes(graph, nullptr, &nodes), "cuGraphGetNodes");
    CUgraphExec exec = nullptr;
    client::must(cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiate");
    for (int i = 0; i < 3; ++i) client::must(cuGraphLaunch(exec, stream), "cuGraphLaunch");
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    std::printf("{\"nodes\": %zu, \"side_captures\": %s, ", nodes,
                status == CU_STREAM_CAPTURE_STATUS_ACTIVE ? "true" : "false");
    if (client::flag(count, values, "--polite")) {  // nothing that a capture forbids
        std::printf("\"done\": true}\n");
        return 0;
    }

    print("global_asked_globally",
          attempt(kernel, stream, done, CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_GLOBAL));
    print("global_asked_thread_local",
          attempt(kernel, stream, done, CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL));
    print("global_asked_relaxed",
          attempt(kernel, stream, done, CU_STREAM_CAPTURE_MODE_GLOBAL, CU_STREAM_CAPTURE_MODE_RELAXED));
    print("thread_local_asked_globally",
          attempt(kernel, stream, done, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_CAPTURE_MODE_GLOBAL));
    print("relaxed_asked_globally",
          attempt(kernel, stream, done, CU_STREAM_CAPTURE_MODE_RELAXED, CU_STREAM_CAPTURE_MODE_GLOBAL));

    // Each rule that capture has, broken once: the call's status, and what ending the capture says.
    const auto broken = [&](const char* name, auto&& call) {
        CUgraph none = nullptr;
        client::must(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "cuStreamBeginCapture");
        client::must(client::launch(tiny, stream), "cuLaunchKernel");
        const int result = call();
        const int end = cuStreamEndCapture(stream, &none);
        std::printf("\"%s\": {\"call\": %d, \"end\": %d, \"graph\": %s}, ", name, result, end,
                    none != nullptr ? "true" : "false");
        if (none != nullptr) cuGraphDestroy(none);
    };
    CUdeviceptr memory = 0;
    CUstream blocking = nullptr;
    client::must(cuStreamCreate(&blocking, CU_STREAM_DEFAULT), "cuStreamCreate");
    broken("synchronize", [&] { return cuStreamSynchronize(stream); });
    broken("query", [&] { return cuStreamQuery(stream); });
    broken("allocate", [&] { return cuMemAlloc_v2(&memory, 1024); });
    broken("context", [&] { return cuCtxSynchronize(); });
    broken("captured_event", [&] {
        client::must(cuEventRecord(fork, stream), "cuEventRecord");
        return cuEventQuery(fork);
    });
    broken("outside_event", [&] { return cuStreamWaitEvent(stream, done, 0); });
    broken("again", [&] { return cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_GLOBAL); });
    broken("unjoined", [&] {
        client::must(cuEventRecord(fork, stream), "cuEventRecord");
        client::must(cuStreamWaitEvent(side, fork, 0), "cuStreamWaitEvent");
        return client::launch(tiny, side);
    });
    broken("other_thread_ends", [&] {
        int result = 0;
        std::thread([&] {
            cuCtxSetCurrent(g_context);
            CUgraph taken = nullptr;
            result = cuStreamEndCapture(stream, &taken);
        }).join();
        return result;
    });
    client::must(cuStreamBeginCapture_v2(blocking, CU_STREAM_CAPTURE_MODE_RELAXED), "cuStreamBeginCapture");
    const int implicit = client::launch(tiny, nullptr);
    const int after = client::launch(tiny, blocking);
    cuStreamEndCapture(blocking, &graph);
    CUgraph unused = nullptr;
    std::printf("\"implicit\": %d, \"after_invalidation\": %d, \"legacy\": %d, \"not_capturing\": %d}\n", implicit,
                after, cuStreamBeginCapture_v2(nullptr, CU_STREAM_CAPTURE_MODE_GLOBAL),
                cuStreamEndCapture(stream, &unused));
    return 0;
}
