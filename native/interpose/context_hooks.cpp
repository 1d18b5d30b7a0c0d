// Contexts, modules and names: what the gate has to know before a launch comes.
#include "guarded.hpp"
#include "hooks.hpp"
#include "session.hpp"
#include "thread.hpp"

namespace tierline::interpose {

namespace {

void now_current(CUcontext context) {
    if (t_thread.context_known && t_thread.context == context) return;
    t_thread.context = context;
    t_thread.context_known = true;
    ++t_thread.context_serial;
}

void unknown_current() {
    t_thread.context_known = false;
    ++t_thread.context_serial;
}

}  // namespace

CUresult init(Site<Fn_cuInit> site, unsigned flags) { return site.real(flags); }

CUresult context_set_current(Site<Fn_cuCtxSetCurrent> site, CUcontext context) {
    const CUresult result = site.real(context);
    if (result == CUDA_SUCCESS) now_current(context);
    return result;
}

CUresult context_push(Site<Fn_cuCtxPushCurrent_v2> site, CUcontext context) {
    const CUresult result = site.real(context);
    if (result == CUDA_SUCCESS) now_current(context);
    return result;
}

CUresult context_pop(Site<Fn_cuCtxPopCurrent_v2> site, CUcontext* context) {
    const CUresult result = site.real(context);
    unknown_current();
    return result;
}

CUresult context_destroy(Site<Fn_cuCtxDestroy_v2> site, CUcontext context) {
    if (Session* session = session_if_any()) {
        guarded([&] {
            session->completion.catch_up();
            session->streams.drop_context(context);
            session->completion.step_back();
        });
    }
    const CUresult result = site.real(context);
    unknown_current();
    return result;
}

CUresult primary_context_end(Site<Fn_cuDevicePrimaryCtxReset_v2> site, CUdevice device) {
    Session* session = session_if_any();
    if (session != nullptr) session->completion.catch_up();
    const CUresult result = site.real(device);
    unknown_current();
    if (session == nullptr || result != CUDA_SUCCESS || driver()->cuDevicePrimaryCtxGetState == nullptr) return result;
    unsigned flags = 0;
    int active = 1;
    if (driver()->cuDevicePrimaryCtxGetState(device, &flags, &active) == CUDA_SUCCESS && active == 0) {
        guarded([&] { session->streams.drop_device(device); });
    }
    return result;
}

CUresult module_get_function(Site<Fn_cuModuleGetFunction> site, CUfunction* f, CUmodule module, const char* name) {
    const CUresult result = site.real(f, module, name);
    Session* owner = result == CUDA_SUCCESS && f != nullptr && name != nullptr ? session() : nullptr;
    if (owner != nullptr) guarded([&] { owner->kernels.named(*f, name); });
    return result;
}

CUresult library_get_kernel(Site<Fn_cuLibraryGetKernel> site, CUkernel* kernel, CUlibrary library, const char* name) {
    const CUresult result = site.real(kernel, library, name);
    Session* owner = result == CUDA_SUCCESS && kernel != nullptr && name != nullptr ? session() : nullptr;
    if (owner != nullptr) guarded([&] { owner->kernels.named(*kernel, name); });
    return result;
}

CUresult kernel_get_function(Site<Fn_cuKernelGetFunction> site, CUfunction* f, CUkernel kernel) {
    const CUresult result = site.real(f, kernel);
    Session* owner = result == CUDA_SUCCESS && f != nullptr ? session_if_any() : nullptr;
    if (owner != nullptr) guarded([&] { owner->kernels.resolved(kernel, *f); });
    return result;
}

CUresult module_unload(Site<Fn_cuModuleUnload> site, CUmodule module) {
    const CUresult result = site.real(module);
    if (Session* session = session_if_any()) guarded([&] { session->kernels.forget(); });
    return result;
}

CUresult library_unload(Site<Fn_cuLibraryUnload> site, CUlibrary library) {
    const CUresult result = site.real(library);
    if (Session* session = session_if_any()) guarded([&] { session->kernels.forget(); });
    return result;
}

}  // namespace tierline::interpose
