// Arguments live on the caller's stack and are overwritten as soon as a launch returns; also the `extra` form, a launch
// configuration and attributes on the stack, and a kernel without arguments.
#include "linked.hpp"

int main(int count, char** values) {
    const auto launches = static_cast<int>(client::option(count, values, "--launches", 20));
    client::start();
    const CUmodule module = client::load();
    const CUfunction kernel = client::function(module, "compute_kernel");
    const CUfunction bare = client::function(module, "no_argument_kernel");
    const CUstream stream = client::stream();
    for (int i = 0; i < launches; ++i) {
        CUdeviceptr pointer = 0xa000U + static_cast<unsigned>(i);
        int value = i;
        void* arguments[] = {&pointer, &value};
        client::must(cuLaunchKernel(kernel, 264, 1, 1, 256, 1, 1, 0, stream, arguments, nullptr), "cuLaunchKernel");
        pointer = 0xdeadbeef;
        value = -1;
        arguments[0] = arguments[1] = nullptr;

        unsigned char buffer[12];
        CUdeviceptr packed = 0xb000U + static_cast<unsigned>(i);
        std::memcpy(buffer, &packed, 8);
        std::memcpy(buffer + 8, &i, 4);
        std::size_t size = sizeof buffer;
        void* extra[] = {reinterpret_cast<void*>(1), buffer, reinterpret_cast<void*>(2), &size, nullptr};
        client::must(cuLaunchKernel(kernel, 264, 1, 1, 256, 1, 1, 0, stream, nullptr, extra),
                     "cuLaunchKernel with extra");
        std::memset(buffer, 0xff, sizeof buffer);
        std::memset(static_cast<void*>(extra), 0xff, sizeof extra);

        CUlaunchAttribute attribute{};
        attribute.id = CU_LAUNCH_ATTRIBUTE_PRIORITY;
        attribute.value.priority = -1;
        CUlaunchConfig config{264, 1, 1, 256, 1, 1, 0, stream, &attribute, 1};
        pointer = 0xc000U + static_cast<unsigned>(i);
        value = i;
        void* again[] = {&pointer, &value};
        client::must(cuLaunchKernelEx(&config, kernel, again, nullptr), "cuLaunchKernelEx");
        std::memset(static_cast<void*>(&config), 0xff, sizeof config);
        std::memset(static_cast<void*>(&attribute), 0xff, sizeof attribute);
        again[0] = again[1] = nullptr;
        client::must(cuLaunchKernel(bare, 132, 1, 1, 128, 1, 1, 0, stream, nullptr, nullptr),
                     "cuLaunchKernel without arguments");
    }
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    std::printf("{\"launches\": %d}\n", launches * 4);
    return 0;
}
