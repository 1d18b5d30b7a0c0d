// What a program compiled by nvcc 13 does for its launches, by hand; built with a static runtime
// (door_static_runtime) and with the shared one (door_shared_runtime).
#include "client.hpp"
#include "runtime_api.hpp"

namespace {

void stub() {}  // stands for a kernel's host function, whose address names it

struct Wrapper {
    int magic, version;
    const void* data;
    void* more;
};

}  // namespace

int main() {
    static Wrapper wrapper{0x466243b1, 1, client::kImage, nullptr};
    const void* const name = reinterpret_cast<const void*>(&stub);
    void** const binary = __cudaRegisterFatBinary(&wrapper);
    __cudaRegisterFunction(binary, static_cast<const char*>(name), nullptr, "compute_kernel", -1, nullptr, nullptr,
                           nullptr, nullptr, nullptr);

    void* memory = nullptr;
    CUstream stream = nullptr;
    client::must(cudaMalloc(&memory, 4096), "cudaMalloc");
    int sent = 4711;
    int received = 0;
    client::must(cudaMemcpy(memory, &sent, sizeof sent, 1), "cudaMemcpy");
    client::must(cudaMemcpy(&received, memory, sizeof received, 2), "cudaMemcpy");
    client::must(cudaStreamCreateWithFlags(&stream, 1), "cudaStreamCreateWithFlags");
    CUevent start = nullptr;
    CUevent end = nullptr;
    client::must(cudaEventCreate(&start), "cudaEventCreate");
    client::must(cudaEventCreate(&end), "cudaEventCreate");
    client::must(cudaEventRecord(start, stream), "cudaEventRecord");

    int value = 7;
    void* arguments[] = {&memory, &value};
    client::must(cudaLaunchKernel(name, dim3{264, 1, 1}, dim3{256, 1, 1}, arguments, 0, stream), "cudaLaunchKernel");
    // As <<<>>> is compiled by nvcc 13.
    __cudaPushCallConfiguration(dim3{264, 1, 1}, dim3{256, 1, 1}, 0, stream);
    CUkernel kernel = nullptr;
    client::must(__cudaGetKernel(&kernel, name), "__cudaGetKernel");
    dim3 grid{}, block{};
    std::size_t shared = 0;
    CUstream popped = nullptr;
    __cudaPopCallConfiguration(&grid, &block, &shared, &popped);
    client::must(__cudaLaunchKernel(kernel, grid, block, arguments, shared, popped), "__cudaLaunchKernel");
    client::must(__cudaLaunchKernel_ptsz(kernel, grid, block, arguments, shared, nullptr), "__cudaLaunchKernel_ptsz");
    client::must(cudaEventRecord(end, stream), "cudaEventRecord");
    client::must(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
    float ms = 0;
    client::must(cudaEventElapsedTime(&ms, start, end), "cudaEventElapsedTime");
    client::must(cudaFree(memory), "cudaFree");

    using Calls = unsigned long long (*)(const char*);
    const auto calls = reinterpret_cast<Calls>(::dlsym(::dlopen("libcuda.so.1", RTLD_NOW), "fakecuda_calls"));
    std::printf(
        "{\"object\": \"%s\", \"copied\": %s, \"ms\": %.6f, \"launches\": %llu, \"per_thread\": %llu, "
        "\"export_tables\": %llu}\n",
        client::object_of(&cudaLaunchKernel).c_str(), received == sent ? "true" : "false", static_cast<double>(ms),
        calls != nullptr ? calls("cuLaunchKernel") : 0, calls != nullptr ? calls("cuLaunchKernel_ptsz") : 0,
        calls != nullptr ? calls("cuGetExportTable") : 0);
    return 0;
}
