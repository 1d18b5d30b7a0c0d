// A kernel that waits for the host, which launches another kernel beside it first; then the flag is set and all ends.
#include "linked.hpp"

int main(int count, char** values) {
    const auto beside = static_cast<int>(client::option(count, values, "--beside", 3));
    client::start();
    const CUmodule module = client::load("FAKECUDA 1\nkernel waits_for_host regs=32 flops=1e3 bytes=1e3 spin=7\n");
    const CUfunction waiting = client::function(module, "waits_for_host");
    const CUfunction compute = client::function(client::load(), "tiny_kernel");
    const CUstream first = client::stream();
    const CUstream second = client::stream();
    client::must(cuLaunchKernel(waiting, 1, 1, 1, 32, 1, 1, 0, first, nullptr, nullptr), "cuLaunchKernel");
    for (int i = 0; i < beside; ++i) client::must(client::launch(compute, second, 16, i), "cuLaunchKernel beside it");
    client::must(cuStreamSynchronize(second), "cuStreamSynchronize");
    const int still = cuStreamQuery(first);
    fakecuda_post(7);
    client::must(cuStreamSynchronize(first), "cuStreamSynchronize");
    std::printf("{\"while_spinning\": %d, \"after\": %d, \"device_ns\": %lld}\n", still, cuStreamQuery(first),
                fakecuda_now());
    return 0;
}
