// Each hook reads the shape from its arguments, sets the tag, and calls the real function. Nothing is changed or kept.
#include "tag_hooks.hpp"

#include "driver.hpp"
#include "session.hpp"
#include "tag.hpp"

#include <dlfcn.h>

#include <array>
#include <atomic>
#include <cstring>

namespace tierline::interpose {

namespace {

constexpr int kNotInitialized = 1;  // CUBLAS_STATUS_NOT_INITIALIZED, CUDNN_STATUS_NOT_INITIALIZED
constexpr const char* kBlas = "libcublas.so";
constexpr const char* kBlasLt = "libcublasLt.so";
constexpr const char* kDnn = "libcudnn";  // its functions lie in several files

// Bytes of an element, by cudaDataType_t.
double element_bytes(int type) {
    switch (type) {
        case 0: case 10: return 4.0;            // R_32F, R_32I
        case 1: case 4: return 8.0;             // R_64F, C_32F
        case 5: return 16.0;                    // C_64F
        case 3: case 8: case 28: case 29: return 1.0;  // R_8I, R_8U, R_8F_E4M3, R_8F_E5M2
        default: return 2.0;                    // R_16F, R_16BF
    }
}

// By cudnnDataType_t.
double dnn_element_bytes(int type) {
    switch (type) {
        case 0: case 4: return 4.0;
        case 1: return 8.0;
        case 2: case 9: return 2.0;
        default: return 1.0;
    }
}

// The function of the library itself; looked up once a symbol.
void* real_of(std::atomic<void*>& slot, const char* library, const char* symbol) {
    void* found = slot.load(std::memory_order_relaxed);
    if (found != nullptr) return found;
    found = real_dlsym()(RTLD_NEXT, symbol);
    if (found == nullptr) {
        if (void* handle = find_loaded_library(library)) found = real_dlsym()(handle, symbol);
    }
    if (found != nullptr) slot.store(found, std::memory_order_relaxed);
    return found;
}

// Does the call read its output? Scalars may lie on the device (pointer mode 1), where they cannot be read.
bool adds(void* handle, const void* beta) {
    if (beta == nullptr) return false;
    static std::atomic<void*> slot{nullptr};
    const auto ask = reinterpret_cast<int (*)(void*, int*)>(real_of(slot, kBlas, "cublasGetPointerMode_v2"));
    int mode = 1;
    if (ask == nullptr || ask(handle, &mode) != 0 || mode != 0) return true;
    std::uint16_t bits = 0;  // zero is all zero bits in every type; half of the scalar tells for 16-bit ones
    std::memcpy(&bits, beta, sizeof bits);
    std::uint16_t high = 0;
    std::memcpy(&high, static_cast<const char*>(beta) + 2, sizeof high);
    return bits != 0 || high != 0;
}

struct Gemm {
    Work work;
    std::uint64_t shape;
};

Gemm gemm(std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t batch, int trans_a, int trans_b, int a, int b,
          int c, bool adding) {
    return {gemm_work(double(m), double(n), double(k), double(batch), element_bytes(a), element_bytes(b),
                      element_bytes(c), adding),
            shape_hash("gemm", {m, n, k, batch, trans_a, trans_b, a, b, c, adding ? 1 : 0})};
}

struct Layout {
    std::uint64_t rows = 0;
    std::uint64_t columns = 0;
    std::int32_t batch = 1;
    std::uint32_t type = 2;
};

bool read_layout(const void* layout, Layout& read) {
    static std::atomic<void*> slot{nullptr};
    using Get = int (*)(const void*, int, void*, std::size_t, std::size_t*);
    const auto get = reinterpret_cast<Get>(real_of(slot, kBlasLt, "cublasLtMatrixLayoutGetAttribute"));
    if (get == nullptr || layout == nullptr) return false;
    std::size_t written = 0;
    get(layout, 0, &read.type, sizeof read.type, &written);
    get(layout, 5, &read.batch, sizeof read.batch, &written);
    return get(layout, 2, &read.rows, sizeof read.rows, &written) == 0 &&
           get(layout, 3, &read.columns, sizeof read.columns, &written) == 0;
}

int read_transposition(const void* desc, int attribute) {
    static std::atomic<void*> slot{nullptr};
    using Get = int (*)(const void*, int, void*, std::size_t, std::size_t*);
    const auto get = reinterpret_cast<Get>(real_of(slot, kBlasLt, "cublasLtMatmulDescGetAttribute"));
    std::int32_t value = 0;
    std::size_t written = 0;
    if (get != nullptr) get(desc, attribute, &value, sizeof value, &written);
    return value;
}

constexpr int kDims = 8;

struct Tensor {
    int count = 0;
    int type = 0;
    std::array<int, kDims> extent{};
    double elements() const {
        double product = count > 0 ? 1.0 : 0.0;
        for (int index = 0; index < count; ++index) product *= extent[static_cast<std::size_t>(index)];
        return product;
    }
};

Tensor read_tensor(const void* desc) {
    static std::atomic<void*> slot{nullptr};
    using Get = int (*)(const void*, int, int*, int*, int*, int*);
    const auto get = reinterpret_cast<Get>(real_of(slot, kDnn, "cudnnGetTensorNdDescriptor"));
    Tensor tensor;
    std::array<int, kDims> strides{};
    if (get == nullptr || get(desc, kDims, &tensor.type, &tensor.count, tensor.extent.data(), strides.data()) != 0) return {};
    tensor.count = tensor.count > kDims ? kDims : tensor.count;
    return tensor;
}

Tensor read_filter(const void* desc) {
    static std::atomic<void*> slot{nullptr};
    using Get = int (*)(const void*, int, int*, int*, int*, int*);
    const auto get = reinterpret_cast<Get>(real_of(slot, kDnn, "cudnnGetFilterNdDescriptor"));
    Tensor filter;
    int format = 0;
    if (get == nullptr || get(desc, kDims, &filter.type, &format, &filter.count, filter.extent.data()) != 0) return {};
    filter.count = filter.count > kDims ? kDims : filter.count;
    return filter;
}

Gemm convolution(const char* op, const void* input, const void* filter, const void* output) {
    const Tensor x = read_tensor(input);
    const Tensor w = read_filter(filter);
    const Tensor y = read_tensor(output);
    return {convolution_work(y.elements(), w.elements(), w.extent[0], x.elements(), dnn_element_bytes(x.type)),
            shape_hash(op, {x.extent[0], x.extent[1], x.extent[2], x.extent[3], x.extent[4], w.extent[0], w.extent[1],
                            w.extent[2], w.extent[3], w.extent[4], y.extent[2], y.extent[3], x.type})};
}

}  // namespace

}  // namespace tierline::interpose

using namespace tierline::interpose;

// One hook: TAG_HOOK(symbol, file, (parameters), (arguments), expression of type Gemm).
#define TAG_HOOK(symbol, file, parameters, arguments, described) \
    extern "C" __attribute__((visibility("default"))) int symbol parameters { \
        static std::atomic<void*> slot{nullptr}; \
        const auto real = reinterpret_cast<int(*) parameters>(real_of(slot, file, #symbol)); \
        if (real == nullptr) return kNotInitialized; \
        if (t_thread.tag.depth > 0 || switched_off()) return real arguments; \
        const Gemm shape = described; \
        const Tagged tagged(shape.shape, shape.work); \
        return real arguments; \
    }

// The forms with 64-bit extents have the same parameters otherwise.
#define GEMM_HOOKS(suffix, integer) \
    TAG_HOOK(cublasSgemm_v2##suffix, kBlas, \
             (void* h, int ta, int tb, integer m, integer n, integer k, const void* alpha, const void* a, integer lda, \
              const void* b, integer ldb, const void* beta, void* c, integer ldc), \
             (h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc), gemm(m, n, k, 1, ta, tb, 0, 0, 0, adds(h, beta))) \
    TAG_HOOK(cublasDgemm_v2##suffix, kBlas, \
             (void* h, int ta, int tb, integer m, integer n, integer k, const void* alpha, const void* a, integer lda, \
              const void* b, integer ldb, const void* beta, void* c, integer ldc), \
             (h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc), gemm(m, n, k, 1, ta, tb, 1, 1, 1, adds(h, beta))) \
    TAG_HOOK(cublasHgemm##suffix, kBlas, \
             (void* h, int ta, int tb, integer m, integer n, integer k, const void* alpha, const void* a, integer lda, \
              const void* b, integer ldb, const void* beta, void* c, integer ldc), \
             (h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc), gemm(m, n, k, 1, ta, tb, 2, 2, 2, adds(h, beta))) \
    TAG_HOOK(cublasGemmEx##suffix, kBlas, \
             (void* h, int ta, int tb, integer m, integer n, integer k, const void* alpha, const void* a, int at, \
              integer lda, const void* b, int bt, integer ldb, const void* beta, void* c, int ct, integer ldc, int type, \
              int algo), \
             (h, ta, tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct, ldc, type, algo), \
             gemm(m, n, k, 1, ta, tb, at, bt, ct, adds(h, beta))) \
    TAG_HOOK(cublasSgemmStridedBatched##suffix, kBlas, \
             (void* h, int ta, int tb, integer m, integer n, integer k, const void* alpha, const void* a, integer lda, \
              long long sa, const void* b, integer ldb, long long sb, const void* beta, void* c, integer ldc, \
              long long sc, integer batch), \
             (h, ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta, c, ldc, sc, batch), \
             gemm(m, n, k, batch, ta, tb, 0, 0, 0, adds(h, beta))) \
    TAG_HOOK(cublasGemmStridedBatchedEx##suffix, kBlas, \
             (void* h, int ta, int tb, integer m, integer n, integer k, const void* alpha, const void* a, int at, \
              integer lda, long long sa, const void* b, int bt, integer ldb, long long sb, const void* beta, void* c, \
              int ct, integer ldc, long long sc, integer batch, int type, int algo), \
             (h, ta, tb, m, n, k, alpha, a, at, lda, sa, b, bt, ldb, sb, beta, c, ct, ldc, sc, batch, type, algo), \
             gemm(m, n, k, batch, ta, tb, at, bt, ct, adds(h, beta))) \
    TAG_HOOK(cublasGemmBatchedEx##suffix, kBlas, \
             (void* h, int ta, int tb, integer m, integer n, integer k, const void* alpha, const void* const* a, int at, \
              integer lda, const void* const* b, int bt, integer ldb, const void* beta, void* const* c, int ct, \
              integer ldc, integer batch, int type, int algo), \
             (h, ta, tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct, ldc, batch, type, algo), \
             gemm(m, n, k, batch, ta, tb, at, bt, ct, adds(h, beta)))

GEMM_HOOKS(, int)
GEMM_HOOKS(_64, long long)

namespace {

Gemm matmul(const void* desc, const void* a, const void* b, const void* beta, const void* d) {
    Layout left;
    Layout right;
    Layout out;
    if (!read_layout(a, left) || !read_layout(b, right) || !read_layout(d, out)) return {{}, shape_hash("matmul", {})};
    const int trans_a = read_transposition(desc, 3);
    const int trans_b = read_transposition(desc, 4);
    const std::uint64_t k = trans_a != 0 ? left.rows : left.columns;
    return gemm(static_cast<std::int64_t>(out.rows), static_cast<std::int64_t>(out.columns), static_cast<std::int64_t>(k),
                out.batch, trans_a, trans_b, static_cast<int>(left.type), static_cast<int>(right.type),
                static_cast<int>(out.type), beta != nullptr && *static_cast<const std::uint32_t*>(beta) != 0);
}

}  // namespace

TAG_HOOK(cublasLtMatmul, kBlasLt,
         (void* h, const void* desc, const void* alpha, const void* a, const void* ad, const void* b, const void* bd,
          const void* beta, const void* c, const void* cd, void* d, const void* dd, const void* algo, void* workspace,
          std::size_t bytes, void* stream),
         (h, desc, alpha, a, ad, b, bd, beta, c, cd, d, dd, algo, workspace, bytes, stream),
         matmul(desc, ad, bd, c != nullptr && c != d ? nullptr : beta, dd))
TAG_HOOK(cudnnConvolutionForward, kDnn,
         (void* h, const void* alpha, const void* xd, const void* x, const void* wd, const void* w, const void* conv,
          int algo, void* workspace, std::size_t bytes, const void* beta, const void* yd, void* y),
         (h, alpha, xd, x, wd, w, conv, algo, workspace, bytes, beta, yd, y), convolution("conv", xd, wd, yd))
TAG_HOOK(cudnnConvolutionBackwardData, kDnn,
         (void* h, const void* alpha, const void* wd, const void* w, const void* yd, const void* y, const void* conv,
          int algo, void* workspace, std::size_t bytes, const void* beta, const void* xd, void* x),
         (h, alpha, wd, w, yd, y, conv, algo, workspace, bytes, beta, xd, x), convolution("conv-data", xd, wd, yd))
TAG_HOOK(cudnnConvolutionBackwardFilter, kDnn,
         (void* h, const void* alpha, const void* xd, const void* x, const void* yd, const void* y, const void* conv,
          int algo, void* workspace, std::size_t bytes, const void* beta, const void* wd, void* w),
         (h, alpha, xd, x, yd, y, conv, algo, workspace, bytes, beta, wd, w), convolution("conv-filter", xd, wd, yd))

namespace tierline::interpose {

namespace {

#define TAG_ROW(symbol, file) {#symbol, file, reinterpret_cast<void*>(&::symbol)}
#define GEMM_ROWS(suffix) \
    TAG_ROW(cublasSgemm_v2##suffix, kBlas), TAG_ROW(cublasDgemm_v2##suffix, kBlas), \
        TAG_ROW(cublasHgemm##suffix, kBlas), TAG_ROW(cublasGemmEx##suffix, kBlas), \
        TAG_ROW(cublasSgemmStridedBatched##suffix, kBlas), TAG_ROW(cublasGemmStridedBatchedEx##suffix, kBlas), \
        TAG_ROW(cublasGemmBatchedEx##suffix, kBlas)

const TagHook g_tag_hooks[] = {GEMM_ROWS(),
                               GEMM_ROWS(_64),
                               TAG_ROW(cublasLtMatmul, kBlasLt),
                               TAG_ROW(cudnnConvolutionForward, kDnn),
                               TAG_ROW(cudnnConvolutionBackwardData, kDnn),
                               TAG_ROW(cudnnConvolutionBackwardFilter, kDnn)};

}  // namespace

const TagHook* tag_hook_of(const char* symbol) {
    if (std::strncmp(symbol, "cublas", 6) != 0 && std::strncmp(symbol, "cudnn", 5) != 0) return nullptr;
    for (const TagHook& hook : g_tag_hooks) {
        if (std::strcmp(hook.symbol, symbol) == 0) return &hook;
    }
    return nullptr;
}

}  // namespace tierline::interpose
