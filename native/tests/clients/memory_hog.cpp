// Allocates until the device says that it is full, in one of three ways, and gives all of it back.
#include <vector>

#include "linked.hpp"

extern "C" {
CUresult cuMemCreate(CUmemGenericAllocationHandle* out, std::size_t bytes, const CUmemAllocationProp* properties,
                     unsigned long long flags);
CUresult cuMemRelease(CUmemGenericAllocationHandle handle);
}

int main(int count, char** values) {
    const auto chunk = static_cast<std::size_t>(client::option(count, values, "--chunk", 1 << 30));
    const long long most = client::option(count, values, "--most", 1000);
    const char* way = client::flag(count, values, "--async")    ? "async"
                      : client::flag(count, values, "--create") ? "create"
                                                                : "plain";
    client::start();
    const CUstream stream = client::stream();
    std::size_t free_before = 0, free_full = 0, free_after = 0, total = 0;
    client::must(cuMemGetInfo_v2(&free_before, &total), "cuMemGetInfo");
    CUmemAllocationProp properties{};
    properties.type = CU_MEM_ALLOCATION_TYPE_PINNED;
    properties.location.type = CU_MEM_LOCATION_TYPE_DEVICE;
    std::vector<unsigned long long> held;
    CUresult last = CUDA_SUCCESS;
    while (last == CUDA_SUCCESS && static_cast<long long>(held.size()) < most) {
        unsigned long long one = 0;
        if (way[0] == 'a')
            last = cuMemAllocAsync(&one, chunk, stream);
        else if (way[0] == 'c')
            last = cuMemCreate(&one, chunk, &properties, 0);
        else
            last = cuMemAlloc_v2(&one, chunk);
        if (last == CUDA_SUCCESS) held.push_back(one);
    }
    client::must(cuMemGetInfo_v2(&free_full, &total), "cuMemGetInfo");
    // Being full must not spoil anything else.
    const CUfunction kernel = client::function(client::load(), "tiny_kernel");
    client::must(client::launch(kernel, stream), "cuLaunchKernel");
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    for (const unsigned long long one : held) {
        if (way[0] == 'a')
            client::must(cuMemFreeAsync(one, stream), "cuMemFreeAsync");
        else if (way[0] == 'c')
            client::must(cuMemRelease(one), "cuMemRelease");
        else
            client::must(cuMemFree_v2(one), "cuMemFree");
    }
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    client::must(cuMemGetInfo_v2(&free_after, &total), "cuMemGetInfo");
    std::printf(
        "{\"way\": \"%s\", \"chunks\": %zu, \"bytes\": %zu, \"status\": %d, \"total\": %zu, \"free_before\": %zu, "
        "\"free_full\": %zu, \"free_after\": %zu}\n",
        way, held.size(), held.size() * chunk, last, total, free_before, free_full, free_after);
    return 0;
}
