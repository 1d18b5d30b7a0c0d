// Linked with a wrapper library before libcuda, which finds the driver by RTLD_NEXT.
#include "linked.hpp"

extern "C" unsigned long long wrapper_launches();

int main() {
    client::start();
    const CUfunction kernel = client::function(client::load(), "compute_kernel");
    const CUstream stream = client::stream();
    for (int i = 0; i < 3; ++i) client::must(client::launch(kernel, stream, 264, i), "cuLaunchKernel");
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    std::printf("{\"door\": \"next\", \"object\": \"%s\", \"wrapper_launches\": %llu, \"driver_launches\": %llu}\n",
                client::object_of(&cuLaunchKernel).c_str(), wrapper_launches(), fakecuda_calls("cuLaunchKernel"));
    return 0;
}
