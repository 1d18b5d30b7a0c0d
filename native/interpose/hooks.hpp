// The implementations behind the hook table. Each takes the real function and whether it is the per-thread form, calls
// the real one exactly once with the program's arguments (or refuses an allocation), and lets no exception out.
#pragma once

#include "driver.hpp"

// Our exports; the real headers are not there when this is built.
extern "C" {
#define TIERLINE_HOOK(symbol, base, version, per_thread, implementation, parameters, arguments) \
    __attribute__((visibility("default"))) CUresult symbol parameters;
#include "hooks.def"
}

namespace tierline::interpose {

template <class Function>
struct Site {
    Function real;
    bool per_thread;
};

// doors.cpp
CUresult get_proc_address(Site<Fn_cuGetProcAddress>, const char*, void**, int, cuuint64_t);
CUresult get_proc_address_v2(Site<Fn_cuGetProcAddress_v2>, const char*, void**, int, cuuint64_t,
                             CUdriverProcAddressQueryResult*);
// launch.cpp
CUresult launch_kernel(Site<Fn_cuLaunchKernel>, CUfunction, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned,
                       unsigned, CUstream, void**, void**);
CUresult launch_kernel_ex(Site<Fn_cuLaunchKernelEx>, const CUlaunchConfig*, CUfunction, void**, void**);
CUresult launch_cooperative(Site<Fn_cuLaunchCooperativeKernel>, CUfunction, unsigned, unsigned, unsigned, unsigned,
                            unsigned, unsigned, unsigned, CUstream, void**);
CUresult graph_launch(Site<Fn_cuGraphLaunch>, CUgraphExec, CUstream);
// context_hooks.cpp
CUresult init(Site<Fn_cuInit>, unsigned);
CUresult context_set_current(Site<Fn_cuCtxSetCurrent>, CUcontext);
CUresult context_push(Site<Fn_cuCtxPushCurrent_v2>, CUcontext);
CUresult context_pop(Site<Fn_cuCtxPopCurrent_v2>, CUcontext*);
CUresult context_destroy(Site<Fn_cuCtxDestroy_v2>, CUcontext);
CUresult primary_context_end(Site<Fn_cuDevicePrimaryCtxReset_v2>, CUdevice);
CUresult module_get_function(Site<Fn_cuModuleGetFunction>, CUfunction*, CUmodule, const char*);
CUresult library_get_kernel(Site<Fn_cuLibraryGetKernel>, CUkernel*, CUlibrary, const char*);
CUresult kernel_get_function(Site<Fn_cuKernelGetFunction>, CUfunction*, CUkernel);
CUresult module_unload(Site<Fn_cuModuleUnload>, CUmodule);
CUresult library_unload(Site<Fn_cuLibraryUnload>, CUlibrary);
// stream_hooks.cpp
CUresult stream_create(Site<Fn_cuStreamCreate>, CUstream*, unsigned);
CUresult stream_create_with_priority(Site<Fn_cuStreamCreateWithPriority>, CUstream*, unsigned, int);
CUresult green_stream_create(Site<Fn_cuGreenCtxStreamCreate>, CUstream*, CUgreenCtx, unsigned, int);
CUresult stream_destroy(Site<Fn_cuStreamDestroy_v2>, CUstream);
CUresult stream_synchronize(Site<Fn_cuStreamSynchronize>, CUstream);
CUresult stream_query(Site<Fn_cuStreamQuery>, CUstream);
CUresult stream_wait_event(Site<Fn_cuStreamWaitEvent>, CUstream, CUevent, unsigned);
CUresult event_record(Site<Fn_cuEventRecord>, CUevent, CUstream);
CUresult event_record_with_flags(Site<Fn_cuEventRecordWithFlags>, CUevent, CUstream, unsigned);
CUresult event_synchronize(Site<Fn_cuEventSynchronize>, CUevent);
CUresult event_query(Site<Fn_cuEventQuery>, CUevent);
CUresult event_destroy(Site<Fn_cuEventDestroy_v2>, CUevent);
CUresult context_synchronize(Site<Fn_cuCtxSynchronize>);
CUresult context_synchronize_v2(Site<Fn_cuCtxSynchronize_v2>, CUcontext);
CUresult memcpy_to_host(Site<Fn_cuMemcpyDtoH_v2>, void*, CUdeviceptr, size_t);
// graph_hooks.cpp
CUresult begin_capture_v1(Site<Fn_cuStreamBeginCapture>, CUstream);
CUresult begin_capture(Site<Fn_cuStreamBeginCapture_v2>, CUstream, CUstreamCaptureMode);
CUresult begin_capture_to_graph(Site<Fn_cuStreamBeginCaptureToGraph>, CUstream, CUgraph, const CUgraphNode*,
                                const CUgraphEdgeData*, size_t, CUstreamCaptureMode);
CUresult end_capture(Site<Fn_cuStreamEndCapture>, CUstream, CUgraph*);
CUresult graph_instantiate_v1(Site<Fn_cuGraphInstantiate>, CUgraphExec*, CUgraph, CUgraphNode*, char*, size_t);
CUresult graph_instantiate(Site<Fn_cuGraphInstantiateWithFlags>, CUgraphExec*, CUgraph, unsigned long long);
CUresult graph_instantiate_with_params(Site<Fn_cuGraphInstantiateWithParams>, CUgraphExec*, CUgraph,
                                       CUDA_GRAPH_INSTANTIATE_PARAMS*);
CUresult graph_exec_update(Site<Fn_cuGraphExecUpdate_v2>, CUgraphExec, CUgraph, CUgraphExecUpdateResultInfo*);
CUresult graph_exec_destroy(Site<Fn_cuGraphExecDestroy>, CUgraphExec);
// memory_hooks.cpp
CUresult mem_alloc(Site<Fn_cuMemAlloc_v2>, CUdeviceptr*, size_t);
CUresult mem_alloc_pitch(Site<Fn_cuMemAllocPitch_v2>, CUdeviceptr*, size_t*, size_t, size_t, unsigned);
CUresult mem_alloc_managed(Site<Fn_cuMemAllocManaged>, CUdeviceptr*, size_t, unsigned);
CUresult mem_alloc_async(Site<Fn_cuMemAllocAsync>, CUdeviceptr*, size_t, CUstream);
CUresult mem_alloc_from_pool(Site<Fn_cuMemAllocFromPoolAsync>, CUdeviceptr*, size_t, CUmemoryPool, CUstream);
CUresult mem_free(Site<Fn_cuMemFree_v2>, CUdeviceptr);
CUresult mem_free_async(Site<Fn_cuMemFreeAsync>, CUdeviceptr, CUstream);
CUresult mem_create(Site<Fn_cuMemCreate>, CUmemGenericAllocationHandle*, size_t, const CUmemAllocationProp*,
                    unsigned long long);
CUresult mem_release(Site<Fn_cuMemRelease>, CUmemGenericAllocationHandle);
CUresult mem_map(Site<Fn_cuMemMap>, CUdeviceptr, size_t, size_t, CUmemGenericAllocationHandle, unsigned long long);
CUresult mem_unmap(Site<Fn_cuMemUnmap>, CUdeviceptr, size_t);
CUresult mem_retain(Site<Fn_cuMemRetainAllocationHandle>, CUmemGenericAllocationHandle*, void*);
CUresult mem_get_info(Site<Fn_cuMemGetInfo_v2>, size_t*, size_t*);

}  // namespace tierline::interpose
