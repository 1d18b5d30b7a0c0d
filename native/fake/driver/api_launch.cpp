// Launches of kernels and host functions.
#include <cstdio>

#include "driver.hpp"

using namespace tierline::fakecuda;

namespace {

std::string hex(const std::vector<std::uint8_t>& bytes) {
    std::string text;
    char two[3];
    for (const std::uint8_t byte : bytes) {
        std::snprintf(two, sizeof two, "%02x", byte);
        text += two;
    }
    return text;
}

void tell(const Launch& launch, const Stream& stream, bool captured) {
    const Shape& s = launch.shape;
    char shape[160];
    std::snprintf(shape, sizeof shape, "[%u, %u, %u]", s[0], s[1], s[2]);
    call_detail().text("name", launch.function->name).text("stream", stream_text(stream)).raw("grid", shape);
    std::snprintf(shape, sizeof shape, "[%u, %u, %u]", s[3], s[4], s[5]);
    call_detail().raw("block", shape).number("smem", s[6]).text("args", hex(launch.arguments));
    if (launch.cooperative) call_detail().raw("cooperative", "true");
    if (launch.dependent) call_detail().raw("dependent", "true");
    if (launch.cluster[0] != 0) {
        std::snprintf(shape, sizeof shape, "[%u, %u, %u]", launch.cluster[0], launch.cluster[1], launch.cluster[2]);
        call_detail().raw("cluster", shape);
    }
    if (captured) call_detail().raw("captured", "true");
}

struct Request {
    CUfunction function;
    Shape shape;
    CUstream stream;
    void** parameters;
    void** extra;
    bool cooperative = false;
    const CUlaunchAttribute* attributes = nullptr;
    unsigned attribute_count = 0;
};

CUresult launch(Entry entry, const Request& request) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        if (const CUresult gate = check_ticket(); gate != CUDA_SUCCESS) return gate;
        Launch what;
        what.function = function_of(request.function);
        Stream* stream = find_stream(request.stream);
        if (what.function == nullptr || stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        what.shape = request.shape;
        what.cooperative = request.cooperative;
        for (unsigned i = 0; i < request.attribute_count; ++i) {
            const CUlaunchAttribute& attribute = request.attributes[i];
            switch (attribute.id) {
                case CU_LAUNCH_ATTRIBUTE_COOPERATIVE: what.cooperative = attribute.value.cooperative != 0; break;
                case CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION:
                    what.dependent = attribute.value.programmaticStreamSerializationAllowed != 0;
                    break;
                case CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION:
                    what.cluster = {attribute.value.clusterDim.x, attribute.value.clusterDim.y,
                                    attribute.value.clusterDim.z};
                    break;
                case CU_LAUNCH_ATTRIBUTE_PRIORITY:
                    // The device knows priorities of streams only; it is in the log, so that a test sees it passed.
                    if (log_enabled()) call_detail().number("priority", attribute.value.priority);
                    break;
                default: break;
            }
        }
        if (const CUresult result = check_launch(what); result != CUDA_SUCCESS) return result;
        if (const CUresult result = read_arguments(what, request.parameters, request.extra); result != CUDA_SUCCESS)
            return result;
        if (const CUresult result = before_enqueue(*stream); result != CUDA_SUCCESS) return result;
        const bool captured = stream->capture != nullptr;
        if (log_enabled()) tell(what, *stream, captured);
        if (!captured) return enqueue_launch(session, *stream, what);
        capture_node(*stream, CU_GRAPH_NODE_TYPE_KERNEL)->launch = std::move(what);
        return CUDA_SUCCESS;
    });
}

CUresult launch_ex(Entry entry, const CUlaunchConfig* config, CUstream stream, CUfunction function, void** parameters,
                   void** extra) {
    const Shape shape{config->gridDimX,  config->gridDimY,  config->gridDimZ,      config->blockDimX,
                      config->blockDimY, config->blockDimZ, config->sharedMemBytes};
    return launch(entry, Request{function, shape, stream, parameters, extra, false, config->attrs, config->numAttrs});
}

CUresult invalid(Entry entry) {
    return call(entry, Need::context, [](Session&) -> CUresult { return CUDA_ERROR_INVALID_VALUE; });
}

CUresult host_function(Entry entry, CUstream handle, CUhostFn function, void* user_data, bool may_capture) {
    return call(entry, Need::context, [&](Session& session) -> CUresult {
        Stream* stream = find_stream(handle);
        if (stream == nullptr) return CUDA_ERROR_INVALID_HANDLE;
        if (function == nullptr) return CUDA_ERROR_INVALID_VALUE;
        if (const CUresult result = before_enqueue(*stream); result != CUDA_SUCCESS) return result;
        if (log_enabled()) call_detail().text("stream", stream_text(*stream));
        if (stream->capture == nullptr) return enqueue_host_call(session, *stream, function, user_data);
        if (!may_capture) {
            invalidate(*stream->capture);
            return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
        }
        Node* node = capture_node(*stream, CU_GRAPH_NODE_TYPE_HOST);
        node->host = function;
        node->user_data = user_data;
        return CUDA_SUCCESS;
    });
}

// What an old-style callback needs: its stream and a status, which here is always success.
struct Callback {
    void (*function)(CUstream, CUresult, void*);
    CUstream stream;
    void* user_data;
};

void run_callback(void* pointer) {
    const std::unique_ptr<Callback> callback(static_cast<Callback*>(pointer));
    callback->function(callback->stream, CUDA_SUCCESS, callback->user_data);
}

CUresult add_callback(Entry entry, CUstream stream, void (*function)(CUstream, CUresult, void*), void* user_data) {
    auto callback = std::make_unique<Callback>(Callback{function, stream, user_data});
    const CUresult result = host_function(entry, stream, run_callback, callback.get(), false);
    if (result == CUDA_SUCCESS) static_cast<void>(callback.release());
    return result;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

CUresult cuLaunchKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                        unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,
                        CUstream stream, void** parameters, void** extra) {
    const Shape shape{grid_x, grid_y, grid_z, block_x, block_y, block_z, shared};
    return launch(Entry::cuLaunchKernel, Request{function, shape, stream, parameters, extra});
}

CUresult cuLaunchKernel_ptsz(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                             unsigned int block_x, unsigned int block_y, unsigned int block_z, unsigned int shared,
                             CUstream stream, void** parameters, void** extra) {
    const Shape shape{grid_x, grid_y, grid_z, block_x, block_y, block_z, shared};
    return launch(Entry::cuLaunchKernel_ptsz, Request{function, shape, own_default(stream), parameters, extra});
}

CUresult cuLaunchKernelEx(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
    if (config == nullptr) return invalid(Entry::cuLaunchKernelEx);
    return launch_ex(Entry::cuLaunchKernelEx, config, config->hStream, function, parameters, extra);
}

CUresult cuLaunchKernelEx_ptsz(const CUlaunchConfig* config, CUfunction function, void** parameters, void** extra) {
    if (config == nullptr) return invalid(Entry::cuLaunchKernelEx_ptsz);
    return launch_ex(Entry::cuLaunchKernelEx_ptsz, config, own_default(config->hStream), function, parameters, extra);
}

CUresult cuLaunchCooperativeKernel(CUfunction function, unsigned int grid_x, unsigned int grid_y, unsigned int grid_z,
                                   unsigned int block_x, unsigned int block_y, unsigned int block_z,
                                   unsigned int shared, CUstream stream, void** parameters) {
    const Shape shape{grid_x, grid_y, grid_z, block_x, block_y, block_z, shared};
    return launch(Entry::cuLaunchCooperativeKernel, Request{function, shape, stream, parameters, nullptr, true});
}

CUresult cuLaunchCooperativeKernel_ptsz(CUfunction function, unsigned int grid_x, unsigned int grid_y,
                                        unsigned int grid_z, unsigned int block_x, unsigned int block_y,
                                        unsigned int block_z, unsigned int shared, CUstream stream, void** parameters) {
    const Shape shape{grid_x, grid_y, grid_z, block_x, block_y, block_z, shared};
    return launch(Entry::cuLaunchCooperativeKernel_ptsz,
                  Request{function, shape, own_default(stream), parameters, nullptr, true});
}

CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* user_data) {
    return host_function(Entry::cuLaunchHostFunc, stream, function, user_data, true);
}

CUresult cuLaunchHostFunc_ptsz(CUstream stream, CUhostFn function, void* user_data) {
    return host_function(Entry::cuLaunchHostFunc_ptsz, own_default(stream), function, user_data, true);
}

CUresult cuStreamAddCallback(CUstream stream, void (*function)(CUstream, CUresult, void*), void* user_data,
                             unsigned int) {
    return add_callback(Entry::cuStreamAddCallback, stream, function, user_data);
}

CUresult cuStreamAddCallback_ptsz(CUstream stream, void (*function)(CUstream, CUresult, void*), void* user_data,
                                  unsigned int) {
    return add_callback(Entry::cuStreamAddCallback_ptsz, own_default(stream), function, user_data);
}

}  // extern "C"
#pragma GCC visibility pop
