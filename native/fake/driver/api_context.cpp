// Contexts.
#include <algorithm>

#include "contexts.hpp"

namespace tierline::fakecuda {

CUresult make_context(unsigned flags, Context*& out, GreenContext* green) {
    Driver& d = driver();
    auto context = std::make_unique<Context>();
    if (green == nullptr) {
        const Status status = d.host.create_context(context->engine);
        if (status != Status::ok) return to_result(status);
    }
    context->flags = flags;
    context->id = d.next_id++;
    context->green = green;
    out = context.release();
    d.contexts.push_back(out);
    return CUDA_SUCCESS;
}

CUresult retain_primary() {
    Driver& d = driver();
    if (d.primary == nullptr) {
        const CUresult result = make_context(d.primary_flags, d.primary, nullptr);
        if (result != CUDA_SUCCESS) return result;
        d.primary->primary = true;
    }
    ++d.primary_references;
    return CUDA_SUCCESS;
}

void destroy_context(Context* context) {
    Driver& d = driver();
    for (Stream* stream : context->streams) stream->tag = Tag::dead;
    if (context->green == nullptr) d.host.destroy_context(context->engine);
    context->tag = Tag::dead;
    d.contexts.erase(std::remove(d.contexts.begin(), d.contexts.end(), context), d.contexts.end());
    auto& stack = context_stack();
    stack.erase(std::remove(stack.begin(), stack.end(), context), stack.end());
}

CUresult release_primary() {
    Driver& d = driver();
    if (d.primary == nullptr || d.primary_references == 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (--d.primary_references == 0) {
        destroy_context(d.primary);
        d.primary = nullptr;
    }
    return CUDA_SUCCESS;
}

}  // namespace tierline::fakecuda

using namespace tierline::fakecuda;

namespace {

// Device time goes on until nothing of the context is left to do.
CUresult synchronize(Session& session, Context& context) {
    if (const CUresult forbidden = unsafe_call(); forbidden != CUDA_SUCCESS) return forbidden;
    for (const auto& capture : driver().captures) {
        // Waiting for everything would wait for a capturing stream: never allowed, in no mode.
        if (capture->origin->context == &context && !capture->invalidated) {
            invalidate(*capture);
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
    }
    wait_until(session, [&] { return driver().ended || driver().host.device().context_idle(context.engine); });
    return CUDA_SUCCESS;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuDevicePrimaryCtxRetain(CUcontext* out, CUdevice device) {
    return call(Entry::cuDevicePrimaryCtxRetain, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        const CUresult result = retain_primary();
        if (result == CUDA_SUCCESS) *out = from<CUcontext>(driver().primary);
        return result;
    });
}

static CUresult primary_release(Entry entry, CUdevice device) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        return good_device(device) ? release_primary() : CUDA_ERROR_INVALID_DEVICE;
    });
}
CUresult cuDevicePrimaryCtxRelease(CUdevice device) {
    return primary_release(Entry::cuDevicePrimaryCtxRelease, device);
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    return primary_release(Entry::cuDevicePrimaryCtxRelease_v2, device);
}

static CUresult primary_reset(Entry entry, CUdevice device) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        Driver& d = driver();
        if (d.primary != nullptr) destroy_context(d.primary);
        d.primary = nullptr;
        d.primary_references = 0;
        return CUDA_SUCCESS;
    });
}
CUresult cuDevicePrimaryCtxReset(CUdevice device) { return primary_reset(Entry::cuDevicePrimaryCtxReset, device); }
CUresult cuDevicePrimaryCtxReset_v2(CUdevice device) {
    return primary_reset(Entry::cuDevicePrimaryCtxReset_v2, device);
}

CUresult cuDevicePrimaryCtxGetState(CUdevice device, unsigned int* flags, int* active) {
    return call(Entry::cuDevicePrimaryCtxGetState, Need::device, [&](Session&) -> CUresult {
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        *flags = driver().primary_flags;
        *active = driver().primary != nullptr ? 1 : 0;
        return CUDA_SUCCESS;
    });
}

static CUresult primary_flags(Entry entry, CUdevice device, unsigned int flags) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        driver().primary_flags = flags;
        return CUDA_SUCCESS;
    });
}
CUresult cuDevicePrimaryCtxSetFlags(CUdevice device, unsigned int flags) {
    return primary_flags(Entry::cuDevicePrimaryCtxSetFlags, device, flags);
}
CUresult cuDevicePrimaryCtxSetFlags_v2(CUdevice device, unsigned int flags) {
    return primary_flags(Entry::cuDevicePrimaryCtxSetFlags_v2, device, flags);
}

static CUresult context_create(Entry entry, CUcontext* out, unsigned int flags, CUdevice device) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        Context* made = nullptr;
        const CUresult result = make_context(flags, made, nullptr);
        if (result != CUDA_SUCCESS) return result;
        context_stack().push_back(made);
        *out = from<CUcontext>(made);
        return CUDA_SUCCESS;
    });
}
CUresult cuCtxCreate_v2(CUcontext* out, unsigned int flags, CUdevice device) {
    return context_create(Entry::cuCtxCreate_v2, out, flags, device);
}
CUresult cuCtxCreate_v3(CUcontext* out, void*, int, unsigned int flags, CUdevice device) {
    return context_create(Entry::cuCtxCreate_v3, out, flags, device);
}
CUresult cuCtxCreate_v4(CUcontext* out, void*, unsigned int flags, CUdevice device) {
    return context_create(Entry::cuCtxCreate_v4, out, flags, device);
}

static CUresult context_destroy(Entry entry, CUcontext handle) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        auto* context = to<Context>(handle, Tag::context);
        if (context == nullptr || context->primary || context->green != nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        destroy_context(context);
        return CUDA_SUCCESS;
    });
}
CUresult cuCtxDestroy(CUcontext context) { return context_destroy(Entry::cuCtxDestroy, context); }
CUresult cuCtxDestroy_v2(CUcontext context) { return context_destroy(Entry::cuCtxDestroy_v2, context); }

CUresult cuCtxGetCurrent(CUcontext* out) {
    return call(Entry::cuCtxGetCurrent, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *out = from<CUcontext>(current_context());
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxSetCurrent(CUcontext handle) {
    return call(Entry::cuCtxSetCurrent, Need::device, [&](Session&) -> CUresult {
        auto* context = to<Context>(handle, Tag::context);
        if (handle != nullptr && context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        auto& stack = context_stack();
        if (!stack.empty()) stack.pop_back();
        if (context != nullptr) stack.push_back(context);
        return CUDA_SUCCESS;
    });
}

static CUresult context_push(Entry entry, CUcontext handle) {
    return call(entry, Need::device, [&](Session&) -> CUresult {
        auto* context = to<Context>(handle, Tag::context);
        if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        context_stack().push_back(context);
        return CUDA_SUCCESS;
    });
}
CUresult cuCtxPushCurrent(CUcontext context) { return context_push(Entry::cuCtxPushCurrent, context); }
CUresult cuCtxPushCurrent_v2(CUcontext context) { return context_push(Entry::cuCtxPushCurrent_v2, context); }

static CUresult context_pop(Entry entry, CUcontext* out) {
    return call(entry, Need::context, [&](Session&) -> CUresult {
        if (out != nullptr) *out = from<CUcontext>(current_context());
        context_stack().pop_back();
        return CUDA_SUCCESS;
    });
}
CUresult cuCtxPopCurrent(CUcontext* out) { return context_pop(Entry::cuCtxPopCurrent, out); }
CUresult cuCtxPopCurrent_v2(CUcontext* out) { return context_pop(Entry::cuCtxPopCurrent_v2, out); }

CUresult cuCtxGetDevice(CUdevice* device) {
    return call(Entry::cuCtxGetDevice, Need::context, [&](Session&) -> CUresult {
        if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
        *device = 0;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetDevice_v2(CUdevice* device, CUcontext context) {
    return call(Entry::cuCtxGetDevice_v2, Need::device, [&](Session&) -> CUresult {
        if (device == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (context == nullptr ? current_context() == nullptr : to<Context>(context, Tag::context) == nullptr) {
            return CUDA_ERROR_INVALID_CONTEXT;
        }
        *device = 0;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetId(CUcontext handle, unsigned long long* id) {
    return call(Entry::cuCtxGetId, Need::device, [&](Session&) -> CUresult {
        const Context* context = handle == nullptr ? current_context() : to<Context>(handle, Tag::context);
        if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        *id = context->id;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetApiVersion(CUcontext, unsigned int* version) {
    return call(Entry::cuCtxGetApiVersion, Need::device, [&](Session&) -> CUresult {
        *version = 3020;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetFlags(unsigned int* flags) {
    return call(Entry::cuCtxGetFlags, Need::context, [&](Session&) -> CUresult {
        *flags = current_context()->flags;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxSynchronize(void) {
    return call(Entry::cuCtxSynchronize, Need::context,
                [&](Session& session) -> CUresult { return synchronize(session, *current_context()); });
}

CUresult cuCtxSynchronize_v2(CUcontext handle) {
    return call(Entry::cuCtxSynchronize_v2, Need::device, [&](Session& session) -> CUresult {
        Context* context = handle == nullptr ? current_context() : to<Context>(handle, Tag::context);
        return context != nullptr ? synchronize(session, *context) : CUDA_ERROR_INVALID_CONTEXT;
    });
}

CUresult cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    return call(Entry::cuCtxGetStreamPriorityRange, Need::context, [&](Session&) -> CUresult {
        if (least != nullptr) *least = 0;
        if (greatest != nullptr) *greatest = -5;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetLimit(std::size_t* value, int) {
    return call(Entry::cuCtxGetLimit, Need::context, [&](Session&) -> CUresult {
        *value = 1024;
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxSetLimit(int, std::size_t) {
    return call(Entry::cuCtxSetLimit, Need::context, [&](Session&) -> CUresult { return CUDA_SUCCESS; });
}

}  // extern "C"
#pragma GCC visibility pop
