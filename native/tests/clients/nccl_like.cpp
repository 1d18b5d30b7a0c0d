// Two ranks of a collective on two streams: the first's kernel does not end before the second's has run. Whoever
// holds the second back until the first is done waits for ever; so launches under NCCL's names must not be held back.
#include "linked.hpp"

int main(int count, char** values) {
    const auto rounds = static_cast<int>(client::option(count, values, "--rounds", 5));
    client::start();
    const CUfunction compute = client::function(client::load(), "compute_kernel");
    const CUstream ranks[] = {client::stream(), client::stream()};
    for (int round = 0; round < rounds; ++round) {
        // Tokens are posted once and for all, so each round has its own.
        char image[512];
        std::snprintf(
            image, sizeof image,
            "FAKECUDA 1\n"
            "kernel ncclDevKernel_AllReduce_Sum_f32_RING_LL regs=96 flops=1e4 bytes=1e5 floor_ns=5000 spin=%d\n"
            "kernel ncclDevKernel_AllReduce_Sum_f32_RING_LL_peer regs=96 flops=1e4 bytes=1e5 floor_ns=5000 post=%d\n",
            16 + round % 200, 16 + round % 200);
        const CUmodule module = client::load(image);
        const CUfunction first = client::function(module, "ncclDevKernel_AllReduce_Sum_f32_RING_LL");
        const CUfunction second = client::function(module, "ncclDevKernel_AllReduce_Sum_f32_RING_LL_peer");
        for (CUstream rank : ranks) client::must(client::launch(compute, rank, 66, round), "cuLaunchKernel");
        client::must(cuLaunchKernel(first, 16, 1, 1, 512, 1, 1, 0, ranks[0], nullptr, nullptr),
                     "launch of the first rank");
        client::must(cuLaunchKernel(second, 16, 1, 1, 512, 1, 1, 0, ranks[1], nullptr, nullptr),
                     "launch of the second rank");
        for (CUstream rank : ranks) client::must(cuStreamSynchronize(rank), "cuStreamSynchronize");
    }
    std::printf("{\"rounds\": %d, \"device_ns\": %lld}\n", rounds, fakecuda_now());
    return 0;
}
