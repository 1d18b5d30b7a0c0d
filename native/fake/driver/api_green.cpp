// Green contexts: lanes of SMs.
#include <algorithm>
#include <cstring>

#include "contexts.hpp"

using namespace tierline::fakecuda;

namespace {

std::int32_t& first_sm_of(CUdevResource& resource) {
    // The driver keeps what it needs in the padding; so does this one.
    return *reinterpret_cast<std::int32_t*>(&resource._internal_padding[4]);
}

void fill_resource(CUdevResource& out, std::int32_t first_sm, std::int32_t sms) {
    std::memset(&out, 0, sizeof out);
    out.type = CU_DEV_RESOURCE_TYPE_SM;
    out.sm.smCount = static_cast<unsigned>(sms);
    out.sm.minSmPartitionSize = static_cast<unsigned>(spec().lane_granularity);
    out.sm.smCoscheduledAlignment = static_cast<unsigned>(spec().lane_granularity);
    first_sm_of(out) = first_sm;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuDeviceGetDevResource(CUdevice device, CUdevResource* resource, CUdevResourceType type) {
    return call(Entry::cuDeviceGetDevResource, Need::device, [&](Session&) -> CUresult {
        if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
        fill_resource(*resource, 0, spec().sms);
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxGetDevResource(CUcontext handle, CUdevResource* resource, CUdevResourceType type) {
    return call(Entry::cuCtxGetDevResource, Need::device, [&](Session&) -> CUresult {
        const auto* context = to<Context>(handle, Tag::context);
        if (context == nullptr) return CUDA_ERROR_INVALID_CONTEXT;
        if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
        const GreenContext* green = context->green;
        fill_resource(*resource, green != nullptr ? green->first_sm : 0,
                      green != nullptr ? green->sm_count : spec().sms);
        return CUDA_SUCCESS;
    });
}

CUresult cuDevSmResourceSplitByCount(CUdevResource* result, unsigned int* groups, const CUdevResource* input,
                                     CUdevResource* remaining, unsigned int flags, unsigned int least) {
    return call(Entry::cuDevSmResourceSplitByCount, Need::device, [&](Session&) -> CUresult {
        if (groups == nullptr || input == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (input->type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
        CUdevResource source = *input;
        const auto have = static_cast<std::int32_t>(source.sm.smCount);
        if (first_sm_of(source) + have > spec().sms || flags > 3) return CUDA_ERROR_INVALID_VALUE;
        const std::int32_t grain = spec().lane_granularity;
        const std::int32_t each = std::max(grain, (static_cast<std::int32_t>(least) + grain - 1) / grain * grain);
        const std::int32_t possible = have / each;
        if (result == nullptr) {  // asks how many groups there could be
            *groups = static_cast<unsigned>(possible);
            return CUDA_SUCCESS;
        }
        if (possible == 0) return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
        const std::int32_t made = std::min(possible, static_cast<std::int32_t>(*groups));
        for (std::int32_t i = 0; i < made; ++i) fill_resource(result[i], first_sm_of(source) + i * each, each);
        *groups = static_cast<unsigned>(made);
        if (remaining != nullptr) {
            const std::int32_t left = have - made * each;
            fill_resource(*remaining, first_sm_of(source) + made * each, left);
            if (left == 0) remaining->type = CU_DEV_RESOURCE_TYPE_INVALID;
        }
        return CUDA_SUCCESS;
    });
}

CUresult cuDevResourceGenerateDesc(CUdevResourceDesc* out, CUdevResource* resources, unsigned int count) {
    return call(Entry::cuDevResourceGenerateDesc, Need::device, [&](Session&) -> CUresult {
        if (out == nullptr || resources == nullptr || count == 0) return CUDA_ERROR_INVALID_VALUE;
        auto resource = std::make_unique<Resource>();
        resource->first_sm = first_sm_of(resources[0]);
        for (unsigned i = 0; i < count; ++i) {
            if (resources[i].type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
            // Several groups make one lane when they lie side by side.
            if (first_sm_of(resources[i]) != resource->first_sm + resource->sm_count) {
                return CUDA_ERROR_INVALID_RESOURCE_CONFIGURATION;
            }
            resource->sm_count += static_cast<std::int32_t>(resources[i].sm.smCount);
        }
        *out = from<CUdevResourceDesc>(resource.release());
        return CUDA_SUCCESS;
    });
}

CUresult cuGreenCtxCreate(CUgreenCtx* out, CUdevResourceDesc handle, CUdevice device, unsigned int flags) {
    return call(Entry::cuGreenCtxCreate, Need::device, [&](Session&) -> CUresult {
        const auto* resource = to<Resource>(handle, Tag::resource);
        if (out == nullptr || resource == nullptr || flags != CU_GREEN_CTX_DEFAULT_STREAM)
            return CUDA_ERROR_INVALID_VALUE;
        if (!good_device(device)) return CUDA_ERROR_INVALID_DEVICE;
        if (const CUresult result = retain_primary(); result != CUDA_SUCCESS) return result;
        auto green = std::make_unique<GreenContext>();
        green->first_sm = resource->first_sm;
        green->sm_count = resource->sm_count;
        if (const CUresult result = make_context(0, green->context, green.get()); result != CUDA_SUCCESS) return result;
        green->context->parent = driver().primary;
        green->context->engine = driver().primary->engine;
        *out = from<CUgreenCtx>(green.release());
        return CUDA_SUCCESS;
    });
}

CUresult cuGreenCtxDestroy(CUgreenCtx handle) {
    return call(Entry::cuGreenCtxDestroy, Need::device, [&](Session&) -> CUresult {
        auto* green = to<GreenContext>(handle, Tag::green_context);
        if (green == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        for (Stream* stream : green->context->streams) {
            if (stream->tag == Tag::stream) driver().host.destroy_stream(stream->engine);
        }
        destroy_context(green->context);
        green->tag = Tag::dead;
        return release_primary();
    });
}

CUresult cuGreenCtxStreamCreate(CUstream* out, CUgreenCtx handle, unsigned int flags, int priority) {
    return call(Entry::cuGreenCtxStreamCreate, Need::device, [&](Session&) -> CUresult {
        auto* green = to<GreenContext>(handle, Tag::green_context);
        if (green == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (out == nullptr || flags != CU_STREAM_NON_BLOCKING) return CUDA_ERROR_INVALID_VALUE;
        Status status = Status::ok;
        Stream* stream = make_stream(*green->context, flags, std::clamp(priority, -5, 0), false, false, green, status);
        if (stream == nullptr) return to_result(status);
        *out = from<CUstream>(stream);
        if (log_enabled()) call_detail().text("stream", stream_text(*stream)).number("first_sm", green->first_sm);
        return CUDA_SUCCESS;
    });
}

CUresult cuGreenCtxGetDevResource(CUgreenCtx handle, CUdevResource* resource, CUdevResourceType type) {
    return call(Entry::cuGreenCtxGetDevResource, Need::device, [&](Session&) -> CUresult {
        const auto* green = to<GreenContext>(handle, Tag::green_context);
        if (green == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (resource == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (type != CU_DEV_RESOURCE_TYPE_SM) return CUDA_ERROR_INVALID_RESOURCE_TYPE;
        fill_resource(*resource, green->first_sm, green->sm_count);
        return CUDA_SUCCESS;
    });
}

CUresult cuCtxFromGreenCtx(CUcontext* out, CUgreenCtx handle) {
    return call(Entry::cuCtxFromGreenCtx, Need::device, [&](Session&) -> CUresult {
        const auto* green = to<GreenContext>(handle, Tag::green_context);
        if (green == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        *out = from<CUcontext>(green->context);
        return CUDA_SUCCESS;
    });
}

}  // extern "C"
#pragma GCC visibility pop
