// A graph of several kernels, launched again and again; its nodes can be asked for their names and shapes.
#include "linked.hpp"

int main(int count, char** values) {
    const long long launches = client::option(count, values, "--launches", 10);
    client::start();
    const CUmodule module = client::load();
    const CUstream stream = client::stream();
    const char* const names[] = {"compute_kernel", "memory_kernel", "tiny_kernel"};
    CUgraph graph = nullptr;
    client::must(cuStreamBeginCapture_v2(stream, CU_STREAM_CAPTURE_MODE_THREAD_LOCAL), "cuStreamBeginCapture");
    for (int i = 0; i < 3; ++i)
        client::must(client::launch(client::function(module, names[i]), stream, 132 * (i + 1), i), "cuLaunchKernel");
    client::must(cuStreamEndCapture(stream, &graph), "cuStreamEndCapture");
    CUgraphNode nodes[8];
    std::size_t found = 8;
    client::must(cuGraphGetNodes(graph, nodes, &found), "cuGraphGetNodes");
    std::printf("{\"grids\": [");
    for (std::size_t i = 0; i < found; ++i) {
        CUDA_KERNEL_NODE_PARAMS_v2 parameters{};
        client::must(cuGraphKernelNodeGetParams_v2(nodes[i], &parameters), "cuGraphKernelNodeGetParams");
        std::printf("%s[%u, %d]", i > 0 ? ", " : "", parameters.gridDimX,
                    *static_cast<int*>(parameters.kernelParams[1]));
    }
    CUgraphExec exec = nullptr;
    client::must(cuGraphInstantiateWithFlags(&exec, graph, 0), "cuGraphInstantiate");
    client::must(cuGraphDestroy(graph), "cuGraphDestroy");
    const long long before = fakecuda_now();
    for (long long i = 0; i < launches; ++i) client::must(cuGraphLaunch(exec, stream), "cuGraphLaunch");
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    std::printf("], \"launches\": %lld, \"device_ns\": %lld}\n", launches, fakecuda_now() - before);
    client::must(cuGraphExecDestroy(exec), "cuGraphExecDestroy");
    return 0;
}
