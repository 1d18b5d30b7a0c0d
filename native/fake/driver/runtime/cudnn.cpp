// A small cuDNN over the fake driver: convolutions as implicit matrix products, and the execution of an opaque plan.
#include <algorithm>

#include "library_kernels.hpp"

using namespace tierline::fakelib;

namespace {

constexpr int kSuccess = 0;
constexpr int kBadParam = 2000;
constexpr int kExecutionFailed = 5000;
constexpr int kMost = 8;

struct Handle {
    CUstream stream = nullptr;
};

struct Tensor {  // also a filter
    int type = 0, format = 0, count = 0;
    int sizes[kMost] = {};
    int strides[kMost] = {};
};

struct Convolution {
    int count = 2, groups = 1, mode = 0, compute = 0;
    int padding[kMost] = {}, stride[kMost] = {1, 1}, dilation[kMost] = {1, 1};
};

struct Plan {
    int type = 0;
};

int bytes_of(int type) { return type == 2 || type == 9 ? 2 : type == 1 ? 8 : 4; }  // CUDNN_DATA_HALF, BFLOAT16, DOUBLE

void set_sizes(Tensor& tensor, int type, int format, int count, const int* sizes) {
    tensor.type = type;
    tensor.format = format;
    tensor.count = std::min(count, kMost);
    std::copy_n(sizes, tensor.count, tensor.sizes);
    int stride = 1;
    for (int i = tensor.count - 1; i >= 0; --i) {
        tensor.strides[i] = stride;
        stride *= sizes[i];
    }
}

std::int64_t product(const int* sizes, int from, int to) {
    std::int64_t all = 1;
    for (int i = from; i < to; ++i) all *= sizes[i];
    return all;
}

// All three passes do the multiplications of the forward one: N*P*Q rows, K columns, C*R*S/groups deep.
int convolve(const char* family, void* handle, const Tensor* out, const Tensor* filter, const Convolution* convolution,
             const void* x, const void* w, void* y) {
    if (handle == nullptr || out == nullptr || filter == nullptr || convolution == nullptr) return kBadParam;
    const std::int64_t rows = out->sizes[0] * product(out->sizes, 2, out->count);
    const std::int64_t columns = filter->sizes[0] / convolution->groups;
    const std::int64_t depth = product(filter->sizes, 1, filter->count);
    const int result = launch_product(family, rows, columns, depth, convolution->groups, bytes_of(out->type),
                                      static_cast<Handle*>(handle)->stream, x, w, y);
    return result == 0 ? kSuccess : kExecutionFailed;
}

template <class Kind>
int create(void** out) {
    *out = new Kind;
    return kSuccess;
}

template <class Kind>
int destroy(void* object) {
    delete static_cast<Kind*>(object);
    return kSuccess;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

std::size_t cudnnGetVersion() { return 91000; }
const char* cudnnGetErrorString(int status) {
    return status == kSuccess ? "CUDNN_STATUS_SUCCESS" : "CUDNN_STATUS_ERROR";
}
int cudnnCreate(void** out) { return driver_table().enter() == CUDA_SUCCESS ? create<Handle>(out) : 1001; }
int cudnnDestroy(void* handle) { return destroy<Handle>(handle); }
int cudnnSetStream(void* handle, CUstream stream) {
    static_cast<Handle*>(handle)->stream = stream;
    return kSuccess;
}
int cudnnGetStream(void* handle, CUstream* out) {
    *out = static_cast<Handle*>(handle)->stream;
    return kSuccess;
}

int cudnnCreateTensorDescriptor(void** out) { return create<Tensor>(out); }
int cudnnDestroyTensorDescriptor(void* tensor) { return destroy<Tensor>(tensor); }
int cudnnSetTensor4dDescriptor(void* tensor, int format, int type, int n, int c, int h, int w) {
    const int sizes[] = {n, c, h, w};
    set_sizes(*static_cast<Tensor*>(tensor), type, format, 4, sizes);
    return kSuccess;
}
int cudnnSetTensorNdDescriptor(void* tensor, int type, int count, const int* sizes, const int* strides) {
    auto& t = *static_cast<Tensor*>(tensor);
    set_sizes(t, type, 0, count, sizes);
    std::copy_n(strides, t.count, t.strides);
    return kSuccess;
}
int cudnnGetTensorNdDescriptor(const void* tensor, int wanted, int* type, int* count, int* sizes, int* strides) {
    const auto& t = *static_cast<const Tensor*>(tensor);
    *type = t.type;
    *count = t.count;
    std::copy_n(t.sizes, std::min(wanted, t.count), sizes);
    std::copy_n(t.strides, std::min(wanted, t.count), strides);
    return kSuccess;
}
int cudnnGetTensor4dDescriptor(const void* tensor, int* type, int* n, int* c, int* h, int* w, int* sn, int* sc, int* sh,
                               int* sw) {
    const auto& t = *static_cast<const Tensor*>(tensor);
    *type = t.type;
    *n = t.sizes[0], *c = t.sizes[1], *h = t.sizes[2], *w = t.sizes[3];
    *sn = t.strides[0], *sc = t.strides[1], *sh = t.strides[2], *sw = t.strides[3];
    return kSuccess;
}

int cudnnCreateFilterDescriptor(void** out) { return create<Tensor>(out); }
int cudnnDestroyFilterDescriptor(void* filter) { return destroy<Tensor>(filter); }
int cudnnSetFilter4dDescriptor(void* filter, int type, int format, int k, int c, int h, int w) {
    const int sizes[] = {k, c, h, w};
    set_sizes(*static_cast<Tensor*>(filter), type, format, 4, sizes);
    return kSuccess;
}
int cudnnSetFilterNdDescriptor(void* filter, int type, int format, int count, const int* sizes) {
    set_sizes(*static_cast<Tensor*>(filter), type, format, count, sizes);
    return kSuccess;
}
int cudnnGetFilterNdDescriptor(const void* filter, int wanted, int* type, int* format, int* count, int* sizes) {
    const auto& f = *static_cast<const Tensor*>(filter);
    *type = f.type;
    *format = f.format;
    *count = f.count;
    std::copy_n(f.sizes, std::min(wanted, f.count), sizes);
    return kSuccess;
}
int cudnnGetFilter4dDescriptor(const void* filter, int* type, int* format, int* k, int* c, int* h, int* w) {
    const auto& f = *static_cast<const Tensor*>(filter);
    *type = f.type, *format = f.format;
    *k = f.sizes[0], *c = f.sizes[1], *h = f.sizes[2], *w = f.sizes[3];
    return kSuccess;
}

int cudnnCreateConvolutionDescriptor(void** out) { return create<Convolution>(out); }
int cudnnDestroyConvolutionDescriptor(void* convolution) { return destroy<Convolution>(convolution); }
int cudnnSetConvolution2dDescriptor(void* convolution, int pad_h, int pad_w, int u, int v, int dilation_h,
                                    int dilation_w, int mode, int compute) {
    auto& c = *static_cast<Convolution*>(convolution);
    c.padding[0] = pad_h, c.padding[1] = pad_w;
    c.stride[0] = u, c.stride[1] = v;
    c.dilation[0] = dilation_h, c.dilation[1] = dilation_w;
    c.mode = mode, c.compute = compute;
    return kSuccess;
}
int cudnnSetConvolutionGroupCount(void* convolution, int groups) {
    if (groups < 1) return kBadParam;
    static_cast<Convolution*>(convolution)->groups = groups;
    return kSuccess;
}
int cudnnGetConvolutionGroupCount(void* convolution, int* groups) {
    *groups = static_cast<Convolution*>(convolution)->groups;
    return kSuccess;
}
int cudnnGetConvolutionNdDescriptor(const void* convolution, int wanted, int* count, int* padding, int* stride,
                                    int* dilation, int* mode, int* compute) {
    const auto& c = *static_cast<const Convolution*>(convolution);
    *count = c.count;
    std::copy_n(c.padding, std::min(wanted, c.count), padding);
    std::copy_n(c.stride, std::min(wanted, c.count), stride);
    std::copy_n(c.dilation, std::min(wanted, c.count), dilation);
    *mode = c.mode, *compute = c.compute;
    return kSuccess;
}

int cudnnConvolutionForward(void* handle, const void*, const void*, const void* x, const void* w_desc, const void* w,
                            const void* conv, int, void*, std::size_t, const void*, const void* y_desc, void* y) {
    return convolve("fake_fprop", handle, static_cast<const Tensor*>(y_desc), static_cast<const Tensor*>(w_desc),
                    static_cast<const Convolution*>(conv), x, w, y);
}
int cudnnConvolutionBackwardData(void* handle, const void*, const void* w_desc, const void* w, const void* dy_desc,
                                 const void* dy, const void* conv, int, void*, std::size_t, const void*, const void*,
                                 void* dx) {
    return convolve("fake_dgrad", handle, static_cast<const Tensor*>(dy_desc), static_cast<const Tensor*>(w_desc),
                    static_cast<const Convolution*>(conv), dy, w, dx);
}
int cudnnConvolutionBackwardFilter(void* handle, const void*, const void*, const void* x, const void* dy_desc,
                                   const void* dy, const void* conv, int, void*, std::size_t, const void*,
                                   const void* dw_desc, void* dw) {
    return convolve("fake_wgrad", handle, static_cast<const Tensor*>(dy_desc), static_cast<const Tensor*>(dw_desc),
                    static_cast<const Convolution*>(conv), x, dy, dw);
}

int cudnnBackendCreateDescriptor(int type, void** out) {
    auto* plan = new Plan;
    plan->type = type;
    *out = plan;
    return kSuccess;
}
int cudnnBackendDestroyDescriptor(void* plan) { return destroy<Plan>(plan); }
int cudnnBackendExecute(void* handle, void* plan, void* variants) {
    if (handle == nullptr || plan == nullptr || variants == nullptr) return kBadParam;
    const int result = launch_product("fake_plan", 4096, 256, 1152, 1, 2, static_cast<Handle*>(handle)->stream, nullptr,
                                      nullptr, nullptr);
    return result == 0 ? kSuccess : kExecutionFailed;
}

}  // extern "C"
#pragma GCC visibility pop
