// The three passes of a convolution through cuDNN, and an opaque plan.
#include "linked.hpp"

extern "C" {
int cudnnCreate(void** out);
int cudnnDestroy(void* handle);
int cudnnDestroyTensorDescriptor(void* tensor);
int cudnnDestroyFilterDescriptor(void* filter);
int cudnnDestroyConvolutionDescriptor(void* convolution);
int cudnnBackendDestroyDescriptor(void* plan);
int cudnnSetStream(void* handle, CUstream stream);
int cudnnCreateTensorDescriptor(void** out);
int cudnnSetTensor4dDescriptor(void* tensor, int format, int type, int n, int c, int h, int w);
int cudnnCreateFilterDescriptor(void** out);
int cudnnSetFilter4dDescriptor(void* filter, int type, int format, int k, int c, int h, int w);
int cudnnCreateConvolutionDescriptor(void** out);
int cudnnSetConvolution2dDescriptor(void*, int, int, int, int, int, int, int, int);
int cudnnSetConvolutionGroupCount(void* convolution, int groups);
int cudnnConvolutionForward(void*, const void*, const void*, const void*, const void*, const void*, const void*, int,
                            void*, std::size_t, const void*, const void*, void*);
int cudnnConvolutionBackwardData(void*, const void*, const void*, const void*, const void*, const void*, const void*,
                                 int, void*, std::size_t, const void*, const void*, void*);
int cudnnConvolutionBackwardFilter(void*, const void*, const void*, const void*, const void*, const void*, const void*,
                                   int, void*, std::size_t, const void*, const void*, void*);
int cudnnBackendCreateDescriptor(int type, void** out);
int cudnnBackendExecute(void* handle, void* plan, void* variants);
}

int main(int count, char** values) {
    const auto groups = static_cast<int>(client::option(count, values, "--groups", 1));
    client::start();
    const CUstream stream = client::stream();
    void *handle = nullptr, *x = nullptr, *w = nullptr, *y = nullptr, *convolution = nullptr, *plan = nullptr;
    client::must(cudnnCreate(&handle), "cudnnCreate");
    client::must(cudnnSetStream(handle, stream), "cudnnSetStream");
    client::must(cudnnCreateTensorDescriptor(&x), "cudnnCreateTensorDescriptor");
    client::must(cudnnCreateTensorDescriptor(&y), "cudnnCreateTensorDescriptor");
    client::must(cudnnCreateFilterDescriptor(&w), "cudnnCreateFilterDescriptor");
    client::must(cudnnCreateConvolutionDescriptor(&convolution), "cudnnCreateConvolutionDescriptor");
    client::must(cudnnSetTensor4dDescriptor(x, 0, 2, 32, 256, 14, 14), "cudnnSetTensor4dDescriptor");
    client::must(cudnnSetTensor4dDescriptor(y, 0, 2, 32, 512, 14, 14), "cudnnSetTensor4dDescriptor");
    client::must(cudnnSetFilter4dDescriptor(w, 2, 0, 512, 256 / groups, 3, 3), "cudnnSetFilter4dDescriptor");
    client::must(cudnnSetConvolution2dDescriptor(convolution, 1, 1, 1, 1, 1, 1, 1, 0),
                 "cudnnSetConvolution2dDescriptor");
    client::must(cudnnSetConvolutionGroupCount(convolution, groups), "cudnnSetConvolutionGroupCount");
    const float one = 1;
    const float zero = 0;
    void* const memory = reinterpret_cast<void*>(0x10000);  // never read
    client::must(
        cudnnConvolutionForward(handle, &one, x, memory, w, memory, convolution, 1, nullptr, 0, &zero, y, memory),
        "cudnnConvolutionForward");
    client::must(
        cudnnConvolutionBackwardData(handle, &one, w, memory, y, memory, convolution, 1, nullptr, 0, &zero, x, memory),
        "cudnnConvolutionBackwardData");
    client::must(cudnnConvolutionBackwardFilter(handle, &one, x, memory, y, memory, convolution, 1, nullptr, 0, &zero,
                                                w, memory),
                 "cudnnConvolutionBackwardFilter");
    client::must(cudnnBackendCreateDescriptor(20, &plan), "cudnnBackendCreateDescriptor");
    client::must(cudnnBackendExecute(handle, plan, plan), "cudnnBackendExecute");
    client::must(cuStreamSynchronize(stream), "cuStreamSynchronize");
    client::must(cudnnDestroyTensorDescriptor(x), "cudnnDestroyTensorDescriptor");
    client::must(cudnnDestroyTensorDescriptor(y), "cudnnDestroyTensorDescriptor");
    client::must(cudnnDestroyFilterDescriptor(w), "cudnnDestroyFilterDescriptor");
    client::must(cudnnDestroyConvolutionDescriptor(convolution), "cudnnDestroyConvolutionDescriptor");
    client::must(cudnnBackendDestroyDescriptor(plan), "cudnnBackendDestroyDescriptor");
    client::must(cudnnDestroy(handle), "cudnnDestroy");
    std::printf("{\"launches\": %llu, \"object\": \"%s\"}\n", fakecuda_calls("cuLaunchKernel"),
                client::object_of(&cudnnConvolutionForward).c_str());
    return 0;
}
