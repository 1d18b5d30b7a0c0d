// A small CUDA runtime over the fake driver: what programs compiled by nvcc call around a launch, and what people
// call by hand. Built twice: as libcudart.so.13, and as an archive for a program that holds its runtime within.
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "driver_table.hpp"

using tierline::fakelib::driver_table;
using tierline::fakelib::kPerThread;

extern "C" {
struct dim3 {
    unsigned x, y, z;
};
}
using cudaError_t = int;
using cudaStream_t = CUstream;
using cudaEvent_t = CUevent;
using cudaKernel_t = CUkernel;

namespace {

constexpr int kInsufficientDriver = 35;
constexpr int kInvalidDeviceFunction = 98;

struct Configuration {
    dim3 grid, block;
    std::size_t shared;
    cudaStream_t stream;
};

struct FatBinary {
    const void* image = nullptr;
    CUlibrary library = nullptr;
};

struct Registered {
    FatBinary* binary = nullptr;
    std::string name;
    CUkernel kernel = nullptr;
};

// What nvcc puts around an image.
struct Wrapper {
    int magic, version;
    const void* data;
    void* more;
};
constexpr int kWrapperMagic = 0x466243b1;

struct Registry {
    std::mutex mutex;
    std::map<const void*, Registered> functions;  // by the host's stub
};

Registry& registry() {
    static Registry* const once = new Registry;
    return *once;
}

thread_local cudaError_t t_last = 0;
thread_local Configuration t_pushed{};

cudaError_t tell(int result) {
    if (result != 0) t_last = result;
    return result;
}

// Functions that only this library needs, found once.
struct More {
    More() {
        const auto& d = driver_table();
        d.take(alloc, "cuMemAlloc", 3020);
        d.take(free, "cuMemFree", 3020);
        d.take(alloc_async, "cuMemAllocAsync", 11020);
        d.take(free_async, "cuMemFreeAsync", 11020);
        d.take(alloc_host, "cuMemHostAlloc", 2020);
        d.take(free_host, "cuMemFreeHost", 2000);
        d.take(info, "cuMemGetInfo", 3020);
        d.take(copy, "cuMemcpy", 4000);
        d.take(copy_async, "cuMemcpyAsync", 4000);
        d.take(fill, "cuMemsetD8", 3020);
        d.take(fill_async, "cuMemsetD8Async", 3020);
        d.take(synchronize, "cuCtxSynchronize", 2000);
        d.take(stream_create, "cuStreamCreateWithPriority", 5050);
        d.take(stream_destroy, "cuStreamDestroy", 4000);
        d.take(stream_synchronize, "cuStreamSynchronize", 2000);
        d.take(stream_synchronize_per_thread, "cuStreamSynchronize", 7000, kPerThread);
        d.take(stream_query, "cuStreamQuery", 2000);
        d.take(stream_wait, "cuStreamWaitEvent", 3020);
        d.take(begin_capture, "cuStreamBeginCapture", 10010);
        d.take(end_capture, "cuStreamEndCapture", 10000);
        d.take(is_capturing, "cuStreamIsCapturing", 10000);
        d.take(instantiate, "cuGraphInstantiateWithFlags", 11040);
        d.take(graph_launch, "cuGraphLaunch", 10000);
        d.take(graph_destroy, "cuGraphDestroy", 10000);
        d.take(exec_destroy, "cuGraphExecDestroy", 10000);
        d.take(event_create, "cuEventCreate", 2000);
        d.take(event_destroy, "cuEventDestroy", 4000);
        d.take(event_record, "cuEventRecord", 2000);
        d.take(event_query, "cuEventQuery", 2000);
        d.take(event_synchronize, "cuEventSynchronize", 2000);
        d.take(event_elapsed, "cuEventElapsedTime", 2000);
        d.take(host_function, "cuLaunchHostFunc", 10000);
        d.take(error_name, "cuGetErrorName", 6000);
        d.take(error_string, "cuGetErrorString", 6000);
        d.take(count, "cuDeviceGetCount", 2000);
        d.take(attribute, "cuDeviceGetAttribute", 2000);
    }
    CUresult (*alloc)(CUdeviceptr*, std::size_t) = nullptr;
    CUresult (*free)(CUdeviceptr) = nullptr;
    CUresult (*alloc_async)(CUdeviceptr*, std::size_t, CUstream) = nullptr;
    CUresult (*free_async)(CUdeviceptr, CUstream) = nullptr;
    CUresult (*alloc_host)(void**, std::size_t, unsigned) = nullptr;
    CUresult (*free_host)(void*) = nullptr;
    CUresult (*info)(std::size_t*, std::size_t*) = nullptr;
    CUresult (*copy)(CUdeviceptr, CUdeviceptr, std::size_t) = nullptr;
    CUresult (*copy_async)(CUdeviceptr, CUdeviceptr, std::size_t, CUstream) = nullptr;
    CUresult (*fill)(CUdeviceptr, unsigned char, std::size_t) = nullptr;
    CUresult (*fill_async)(CUdeviceptr, unsigned char, std::size_t, CUstream) = nullptr;
    CUresult (*synchronize)() = nullptr;
    CUresult (*stream_create)(CUstream*, unsigned, int) = nullptr;
    CUresult (*stream_destroy)(CUstream) = nullptr;
    CUresult (*stream_synchronize)(CUstream) = nullptr;
    CUresult (*stream_synchronize_per_thread)(CUstream) = nullptr;
    CUresult (*stream_query)(CUstream) = nullptr;
    CUresult (*stream_wait)(CUstream, CUevent, unsigned) = nullptr;
    CUresult (*begin_capture)(CUstream, CUstreamCaptureMode) = nullptr;
    CUresult (*end_capture)(CUstream, CUgraph*) = nullptr;
    CUresult (*is_capturing)(CUstream, CUstreamCaptureStatus*) = nullptr;
    CUresult (*instantiate)(CUgraphExec*, CUgraph, unsigned long long) = nullptr;
    CUresult (*graph_launch)(CUgraphExec, CUstream) = nullptr;
    CUresult (*graph_destroy)(CUgraph) = nullptr;
    CUresult (*exec_destroy)(CUgraphExec) = nullptr;
    CUresult (*event_create)(CUevent*, unsigned) = nullptr;
    CUresult (*event_destroy)(CUevent) = nullptr;
    CUresult (*event_record)(CUevent, CUstream) = nullptr;
    CUresult (*event_query)(CUevent) = nullptr;
    CUresult (*event_synchronize)(CUevent) = nullptr;
    CUresult (*event_elapsed)(float*, CUevent, CUevent) = nullptr;
    CUresult (*host_function)(CUstream, CUhostFn, void*) = nullptr;
    CUresult (*error_name)(CUresult, const char**) = nullptr;
    CUresult (*error_string)(CUresult, const char**) = nullptr;
    CUresult (*count)(int*) = nullptr;
    CUresult (*attribute)(int*, int, CUdevice) = nullptr;
};

const More& more() {
    static const More* const once = new More;
    return *once;
}

// One call of the driver within the primary context.
template <class Function, class... Arguments>
cudaError_t ask(Function* function, Arguments... arguments) {
    const CUresult ready = driver_table().enter();
    if (ready == CUDA_ERROR_STUB_LIBRARY || (ready == CUDA_SUCCESS && function == nullptr))
        return tell(kInsufficientDriver);
    return tell(ready == CUDA_SUCCESS ? function(arguments...) : ready);
}

CUdeviceptr address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

cudaError_t find_kernel(const void* stub, CUkernel& out) {
    if (const CUresult ready = driver_table().enter(); ready != CUDA_SUCCESS) return ready;
    const std::lock_guard<std::mutex> lock(registry().mutex);
    const auto found = registry().functions.find(stub);
    if (found == registry().functions.end()) return kInvalidDeviceFunction;
    Registered& function = found->second;
    if (function.kernel == nullptr) {  // loaded at the first use
        FatBinary& binary = *function.binary;
        if (binary.library == nullptr) {
            const CUresult loaded =
                driver_table().library_load(&binary.library, binary.image, nullptr, nullptr, 0, nullptr, nullptr, 0);
            if (loaded != CUDA_SUCCESS) return loaded;
        }
        const CUresult got = driver_table().library_kernel(&function.kernel, binary.library, function.name.c_str());
        if (got != CUDA_SUCCESS) return got;
    }
    out = function.kernel;
    return 0;
}

cudaError_t launch(CUkernel kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared, cudaStream_t stream,
                   bool per_thread) {
    const auto& d = driver_table();
    return ask(per_thread ? d.launch_per_thread : d.launch, reinterpret_cast<CUfunction>(kernel), grid.x, grid.y,
               grid.z, block.x, block.y, block.z, static_cast<unsigned>(shared), stream, arguments,
               static_cast<void**>(nullptr));
}

cudaError_t launch_stub(const void* stub, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                        cudaStream_t stream, bool per_thread) {
    CUkernel kernel = nullptr;
    const cudaError_t result = find_kernel(stub, kernel);
    return result == 0 ? launch(kernel, grid, block, arguments, shared, stream, per_thread) : tell(result);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

// What nvcc's host code calls.
void** __cudaRegisterFatBinary(void* wrapper) {
    const auto* given = static_cast<const Wrapper*>(wrapper);
    auto* binary = new FatBinary;
    binary->image = given->magic == kWrapperMagic ? given->data : nullptr;
    return reinterpret_cast<void**>(binary);
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
void __cudaRegisterFunction(void** binary, const char* stub, char*, const char* name, int, void*, void*, void*, void*,
                            int*) {
    const std::lock_guard<std::mutex> lock(registry().mutex);
    registry().functions[stub] = Registered{reinterpret_cast<FatBinary*>(binary), name, nullptr};
}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, std::size_t shared, CUstream stream) {
    t_pushed = Configuration{grid, block, shared, stream};
    return 0;
}
cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, std::size_t* shared, void* stream) {
    *grid = t_pushed.grid;
    *block = t_pushed.block;
    *shared = t_pushed.shared;
    *static_cast<cudaStream_t*>(stream) = t_pushed.stream;
    return 0;
}
cudaError_t __cudaGetKernel(cudaKernel_t* out, const void* stub) { return tell(find_kernel(stub, *out)); }
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                               cudaStream_t stream) {
    return launch(kernel, grid, block, arguments, shared, stream, false);
}
cudaError_t __cudaLaunchKernel_ptsz(cudaKernel_t kernel, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                                    cudaStream_t stream) {
    return launch(kernel, grid, block, arguments, shared, stream, true);
}

cudaError_t cudaLaunchKernel(const void* stub, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                             cudaStream_t stream) {
    return launch_stub(stub, grid, block, arguments, shared, stream, false);
}
cudaError_t cudaLaunchKernel_ptsz(const void* stub, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                                  cudaStream_t stream) {
    return launch_stub(stub, grid, block, arguments, shared, stream, true);
}

struct cudaLaunchConfig_st {
    dim3 gridDim, blockDim;
    std::size_t dynamicSmemBytes;
    cudaStream_t stream;
    CUlaunchAttribute* attrs;
    unsigned numAttrs;
};
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_st* given, const void* stub, void** arguments) {
    CUkernel kernel = nullptr;
    const cudaError_t found = find_kernel(stub, kernel);
    if (found != 0) return tell(found);
    const CUlaunchConfig config{given->gridDim.x,
                                given->gridDim.y,
                                given->gridDim.z,
                                given->blockDim.x,
                                given->blockDim.y,
                                given->blockDim.z,
                                static_cast<unsigned>(given->dynamicSmemBytes),
                                given->stream,
                                given->attrs,
                                given->numAttrs};
    return ask(driver_table().launch_ex, &config, reinterpret_cast<CUfunction>(kernel), arguments,
               static_cast<void**>(nullptr));
}
cudaError_t cudaLaunchCooperativeKernel(const void* stub, dim3 grid, dim3 block, void** arguments, std::size_t shared,
                                        cudaStream_t stream) {
    CUkernel kernel = nullptr;
    const cudaError_t found = find_kernel(stub, kernel);
    if (found != 0) return tell(found);
    return ask(driver_table().launch_cooperative, reinterpret_cast<CUfunction>(kernel), grid.x, grid.y, grid.z, block.x,
               block.y, block.z, static_cast<unsigned>(shared), stream, arguments);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, CUhostFn function, void* data) {
    return ask(more().host_function, stream, function, data);
}

cudaError_t cudaGetLastError() {
    const cudaError_t last = t_last;
    t_last = 0;
    return last;
}
cudaError_t cudaPeekAtLastError() { return t_last; }
const char* cudaGetErrorName(cudaError_t error) {
    const char* text = nullptr;
    if (more().error_name != nullptr) more().error_name(static_cast<CUresult>(error), &text);
    return text != nullptr ? text : "unrecognized error code";
}
const char* cudaGetErrorString(cudaError_t error) {
    const char* text = nullptr;
    if (more().error_string != nullptr) more().error_string(static_cast<CUresult>(error), &text);
    return text != nullptr ? text : "unrecognized error code";
}
cudaError_t cudaDriverGetVersion(int* version) { return ask(driver_table().version, version); }
cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = 13000;
    return 0;
}
cudaError_t cudaGetDeviceCount(int* count) { return ask(more().count, count); }
cudaError_t cudaGetDevice(int* device) {
    *device = 0;
    return tell(driver_table().enter());
}
cudaError_t cudaSetDevice(int device) { return tell(device == 0 ? driver_table().enter() : CUDA_ERROR_INVALID_DEVICE); }
cudaError_t cudaDeviceGetAttribute(int* value, int which, int device) {
    return ask(more().attribute, value, which, device);
}
cudaError_t cudaDeviceSynchronize() { return ask(more().synchronize); }

cudaError_t cudaMalloc(void** out, std::size_t bytes) {
    return ask(more().alloc, reinterpret_cast<CUdeviceptr*>(out), bytes);
}
cudaError_t cudaFree(void* pointer) { return ask(more().free, address(pointer)); }
cudaError_t cudaMallocAsync(void** out, std::size_t bytes, cudaStream_t stream) {
    return ask(more().alloc_async, reinterpret_cast<CUdeviceptr*>(out), bytes, stream);
}
cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
    return ask(more().free_async, address(pointer), stream);
}
cudaError_t cudaMallocHost(void** out, std::size_t bytes) { return ask(more().alloc_host, out, bytes, 0U); }
cudaError_t cudaFreeHost(void* pointer) { return ask(more().free_host, pointer); }
cudaError_t cudaMemGetInfo(std::size_t* free_bytes, std::size_t* total) { return ask(more().info, free_bytes, total); }
cudaError_t cudaMemcpy(void* to, const void* from, std::size_t bytes, int) {
    return ask(more().copy, address(to), address(from), bytes);
}
cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, int, cudaStream_t stream) {
    return ask(more().copy_async, address(to), address(from), bytes, stream);
}
cudaError_t cudaMemset(void* to, int value, std::size_t bytes) {
    return ask(more().fill, address(to), static_cast<unsigned char>(value), bytes);
}
cudaError_t cudaMemsetAsync(void* to, int value, std::size_t bytes, cudaStream_t stream) {
    return ask(more().fill_async, address(to), static_cast<unsigned char>(value), bytes, stream);
}

cudaError_t cudaStreamCreate(cudaStream_t* out) { return ask(more().stream_create, out, 0U, 0); }
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* out, unsigned flags) {
    return ask(more().stream_create, out, flags, 0);
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t* out, unsigned flags, int priority) {
    return ask(more().stream_create, out, flags, priority);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) { return ask(more().stream_destroy, stream); }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return ask(more().stream_synchronize, stream); }
cudaError_t cudaStreamSynchronize_ptsz(cudaStream_t stream) {
    return ask(more().stream_synchronize_per_thread, stream);
}
cudaError_t cudaStreamQuery(cudaStream_t stream) { return ask(more().stream_query, stream); }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags) {
    return ask(more().stream_wait, stream, event, flags);
}
cudaError_t cudaStreamBeginCapture(cudaStream_t stream, int mode) {
    return ask(more().begin_capture, stream, static_cast<CUstreamCaptureMode>(mode));
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, CUgraph* out) { return ask(more().end_capture, stream, out); }
cudaError_t cudaStreamIsCapturing(cudaStream_t stream, int* out) {
    CUstreamCaptureStatus status = CU_STREAM_CAPTURE_STATUS_NONE;
    const cudaError_t result = ask(more().is_capturing, stream, &status);
    *out = status;
    return result;
}
cudaError_t cudaGraphInstantiate(CUgraphExec* out, CUgraph graph, unsigned long long flags) {
    return ask(more().instantiate, out, graph, flags);
}
cudaError_t cudaGraphLaunch(CUgraphExec exec, cudaStream_t stream) { return ask(more().graph_launch, exec, stream); }
cudaError_t cudaGraphDestroy(CUgraph graph) { return ask(more().graph_destroy, graph); }
cudaError_t cudaGraphExecDestroy(CUgraphExec exec) { return ask(more().exec_destroy, exec); }

cudaError_t cudaEventCreate(cudaEvent_t* out) { return ask(more().event_create, out, 0U); }
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* out, unsigned flags) { return ask(more().event_create, out, flags); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return ask(more().event_destroy, event); }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) { return ask(more().event_record, event, stream); }
cudaError_t cudaEventQuery(cudaEvent_t event) { return ask(more().event_query, event); }
cudaError_t cudaEventSynchronize(cudaEvent_t event) { return ask(more().event_synchronize, event); }
cudaError_t cudaEventElapsedTime(float* out, cudaEvent_t start, cudaEvent_t end) {
    return ask(more().event_elapsed, out, start, end);
}

}  // extern "C"
#pragma GCC visibility pop
