// The first door: linked with -lcuda.
#include "linked.hpp"

int main(int count, char** values) {
    const long long launches = client::option(count, values, "--launches", 3);
    client::start();
    const CUmodule module = client::load();
    const CUfunction kernel = client::function(module, "compute_kernel");
    const CUstream stream = client::stream();
    for (long long i = 0; i < launches; ++i)
        client::must(client::launch(kernel, stream, 264, static_cast<int>(i)), "cuLaunchKernel");
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    std::printf("{\"door\": \"plain\", \"object\": \"%s\", \"launches\": %lld, \"device_ns\": %lld}\n",
                client::object_of(&cuLaunchKernel).c_str(), launches, fakecuda_now());
    return 0;
}
