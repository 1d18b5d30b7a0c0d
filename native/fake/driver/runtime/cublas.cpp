// A small cuBLAS over the fake driver.
#include "library_kernels.hpp"

using namespace tierline::fakelib;

namespace {

constexpr int kSuccess = 0;
constexpr int kNotInitialized = 1;
constexpr int kInvalidValue = 7;
constexpr int kExecutionFailed = 13;

struct Handle {
    CUstream stream = nullptr;
};

int product(void* handle, int m, int n, int k, int batch, int data_type, const void* a, const void* b, void* c) {
    if (handle == nullptr) return kNotInitialized;
    if (m < 0 || n < 0 || k < 0 || batch < 0) return kInvalidValue;
    const int result = launch_product("fake_gemm", m, n, k, batch, element_bytes(data_type),
                                      static_cast<Handle*>(handle)->stream, a, b, c);
    return result == 0 ? kSuccess : kExecutionFailed;
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int cublasCreate_v2(void** out) {
    if (out == nullptr) return kInvalidValue;
    if (driver_table().enter() != CUDA_SUCCESS) return kNotInitialized;
    *out = new Handle;
    return kSuccess;
}
int cublasDestroy_v2(void* handle) {
    delete static_cast<Handle*>(handle);
    return kSuccess;
}
int cublasSetStream_v2(void* handle, CUstream stream) {
    if (handle == nullptr) return kNotInitialized;
    static_cast<Handle*>(handle)->stream = stream;
    return kSuccess;
}
int cublasGetStream_v2(void* handle, CUstream* out) {
    if (handle == nullptr) return kNotInitialized;
    *out = static_cast<Handle*>(handle)->stream;
    return kSuccess;
}
int cublasSetWorkspace_v2(void* handle, void*, std::size_t) { return handle != nullptr ? kSuccess : kNotInitialized; }
int cublasSetMathMode(void* handle, int) { return handle != nullptr ? kSuccess : kNotInitialized; }
int cublasGetVersion_v2(void*, int* version) {
    *version = 130000;
    return kSuccess;
}

int cublasSgemm_v2(void* handle, int, int, int m, int n, int k, const float*, const float* a, int, const float* b, int,
                   const float*, float* c, int) {
    return product(handle, m, n, k, 1, 0, a, b, c);
}
int cublasHgemm(void* handle, int, int, int m, int n, int k, const void*, const void* a, int, const void* b, int,
                const void*, void* c, int) {
    return product(handle, m, n, k, 1, 2, a, b, c);
}
int cublasGemmEx(void* handle, int, int, int m, int n, int k, const void*, const void* a, int a_type, int,
                 const void* b, int, int, const void*, void* c, int, int, int, int) {
    return product(handle, m, n, k, 1, a_type, a, b, c);
}
int cublasGemmStridedBatchedEx(void* handle, int, int, int m, int n, int k, const void*, const void* a, int a_type, int,
                               long long, const void* b, int, int, long long, const void*, void* c, int, int, long long,
                               int batch, int, int) {
    return product(handle, m, n, k, batch, a_type, a, b, c);
}
int cublasGemmBatchedEx(void* handle, int, int, int m, int n, int k, const void*, const void* const* a, int a_type, int,
                        const void* const* b, int, int, const void*, void* const* c, int, int, int batch, int, int) {
    return product(handle, m, n, k, batch, a_type, a, b, const_cast<void**>(c));
}

}  // extern "C"
#pragma GCC visibility pop
