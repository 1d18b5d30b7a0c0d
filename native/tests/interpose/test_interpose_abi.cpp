// Compares the hook table and the structs of abi/cuda.hpp with the toolkit's cuda.h, where there is one when this is built:
// everything here is decided by the compiler. Without cuda.h only the counts of the table are looked at.
#include "check.hpp"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <set>
#include <type_traits>

#if __has_include(<cuda.h>)
#define WITH_TOOLKIT 1
// As the driver itself is built: every version of a function under its own name, no macro that renames it.
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
namespace ours {
#include "abi/cuda.hpp"
}

#define SAME_LAYOUT(type) \
    static_assert(sizeof(ours::type) == sizeof(::type) && alignof(ours::type) == alignof(::type), #type)
#define SAME_FIELD(type, field) \
    static_assert(offsetof(ours::type, field) == offsetof(::type, field) && \
                      sizeof(ours::type::field) == sizeof(::type::field), #type "." #field)
#define SAME_VALUE(name) static_assert(static_cast<long long>(ours::name) == static_cast<long long>(::name), #name)

SAME_LAYOUT(CUdeviceptr);
SAME_LAYOUT(CUmemGenericAllocationHandle);
SAME_LAYOUT(CUuuid);
SAME_LAYOUT(CUresult);
SAME_LAYOUT(CUlaunchConfig);
SAME_FIELD(CUlaunchConfig, sharedMemBytes);
SAME_FIELD(CUlaunchConfig, hStream);
SAME_FIELD(CUlaunchConfig, attrs);
SAME_FIELD(CUlaunchConfig, numAttrs);
SAME_LAYOUT(CUlaunchAttribute);
SAME_FIELD(CUlaunchAttribute, value);
SAME_LAYOUT(CUlaunchAttributeValue);
SAME_FIELD(CUlaunchAttributeValue, clusterDim);
SAME_FIELD(CUlaunchAttributeValue, programmaticEvent);
SAME_FIELD(CUlaunchAttributeValue, launchCompletionEvent);
SAME_LAYOUT(CUDA_KERNEL_NODE_PARAMS_v1);
SAME_LAYOUT(CUDA_KERNEL_NODE_PARAMS_v2);
SAME_FIELD(CUDA_KERNEL_NODE_PARAMS_v2, kernelParams);
SAME_FIELD(CUDA_KERNEL_NODE_PARAMS_v2, kern);
SAME_FIELD(CUDA_KERNEL_NODE_PARAMS_v2, ctx);
SAME_LAYOUT(CUgraphEdgeData);
SAME_LAYOUT(CUDA_GRAPH_INSTANTIATE_PARAMS);
SAME_FIELD(CUDA_GRAPH_INSTANTIATE_PARAMS, result_out);
SAME_LAYOUT(CUgraphExecUpdateResultInfo);
SAME_FIELD(CUgraphExecUpdateResultInfo, errorFromNode);
SAME_LAYOUT(CUmemLocation);
SAME_LAYOUT(CUmemAllocationProp);
SAME_FIELD(CUmemAllocationProp, location);
SAME_FIELD(CUmemAllocationProp, allocFlags);
SAME_LAYOUT(CUdevSmResource);
SAME_LAYOUT(CUdevResource);
SAME_FIELD(CUdevResource, sm);
SAME_VALUE(CUDA_ERROR_OUT_OF_MEMORY);
SAME_VALUE(CUDA_ERROR_NOT_INITIALIZED);
SAME_VALUE(CUDA_ERROR_NO_DEVICE);
SAME_VALUE(CUDA_ERROR_NOT_READY);
SAME_VALUE(CUDA_ERROR_LAUNCH_FAILED);
SAME_VALUE(CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD);
SAME_VALUE(CUDA_ERROR_CAPTURED_EVENT);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_CLOCK_RATE);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
SAME_VALUE(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
SAME_VALUE(CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES);
SAME_VALUE(CU_FUNC_ATTRIBUTE_NUM_REGS);
SAME_VALUE(CU_STREAM_NON_BLOCKING);
SAME_VALUE(CU_EVENT_DISABLE_TIMING);
SAME_VALUE(CU_STREAM_CAPTURE_MODE_RELAXED);
SAME_VALUE(CU_STREAM_CAPTURE_STATUS_INVALIDATED);
SAME_VALUE(CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM);
SAME_VALUE(CU_GET_PROC_ADDRESS_VERSION_NOT_SUFFICIENT);
SAME_VALUE(CU_LAUNCH_ATTRIBUTE_COOPERATIVE);
SAME_VALUE(CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
SAME_VALUE(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION);
SAME_VALUE(CU_LAUNCH_ATTRIBUTE_PRIORITY);
SAME_VALUE(CU_GRAPH_NODE_TYPE_KERNEL);
SAME_VALUE(CU_GRAPH_NODE_TYPE_GRAPH);
SAME_VALUE(CU_MEM_LOCATION_TYPE_DEVICE);

// Each line's parameters, read with the toolkit's own types, are those of the toolkit's typedef for that version.
#include <cudaTypedefs.h>
#define TIERLINE_HOOK(symbol, base, version, per_thread, implementation, parameters, arguments) \
    static_assert(std::is_same_v<CUresult(*) parameters, TYPEDEF_##per_thread(base, version)>, #symbol);
#define TYPEDEF_0(base, version) PFN_##base##_v##version
#define TIERLINE_HOOK_PAIR(symbol, suffix, base, version, per_thread_version, implementation, parameters, arguments) \
    TIERLINE_HOOK(symbol, base, version, 0, implementation, parameters, arguments) \
    static_assert(std::is_same_v<CUresult(*) parameters, PFN_##base##_v##per_thread_version##suffix>, #symbol #suffix);
#include "interpose/hooks.def"
#else
#define WITH_TOOLKIT 0
#endif

#undef TIERLINE_HOOK_PAIR
namespace {

struct Row {
    const char* symbol;
    const char* base;
    int version;
    int per_thread;
};

const Row kRows[] = {
#define TIERLINE_HOOK(symbol, base, version, per_thread, implementation, parameters, arguments) \
    {#symbol, #base, version, per_thread},
#include "interpose/hooks.def"
};

}  // namespace

int main() {
    std::set<std::string> symbols;
    std::set<std::string> requests;
    for (const Row& row : kRows) {
        // Two rows with one symbol, or for one request, would make the doors' answer depend on their order.
        CHECK(symbols.insert(row.symbol).second);
        CHECK(requests.insert(std::string(row.base) + std::to_string(row.version) + (row.per_thread ? "p" : "")).second);
        CHECK(std::strncmp(row.symbol, row.base, std::strlen(row.base)) == 0);
        const std::size_t length = std::strlen(row.symbol);
        const std::string end = length > 5 ? row.symbol + length - 5 : "";
        CHECK_EQ(row.per_thread != 0, end == "_ptsz" || end == "_ptds");
    }
    for (const char* never : {"cuGetExportTable"}) CHECK_EQ(symbols.count(never), std::size_t{0});
    std::fprintf(stderr, "compared with cuda.h: %s\n", WITH_TOOLKIT ? "yes" : "no, there is none");
    return check_result();
}
