// A small cuBLASLt over the fake driver: descriptors with their attributes, one heuristic, the product.
#include <cstring>

#include "library_kernels.hpp"

using namespace tierline::fakelib;

namespace {

constexpr int kSuccess = 0;
constexpr int kInvalidValue = 7;
constexpr int kExecutionFailed = 13;

// Numbers of cublasLtMatrixLayoutAttribute_t and their values.
struct Layout {
    std::uint32_t type = 0;
    std::int32_t order = 0;
    std::uint64_t rows = 0, columns = 0;
    std::int64_t leading = 0;
    std::int32_t batch = 1;
    std::int64_t stride = 0;
};

// Of cublasLtMatmulDescAttributes_t; the rest are taken and forgotten.
struct Description {
    std::int32_t compute = 0, scale = 0, pointer_mode = 0, transpose_a = 0, transpose_b = 0;
};

struct Field {
    void* place = nullptr;
    std::size_t bytes = 0;
};

Field field(Layout& layout, int attribute) {
    switch (attribute) {
        case 0: return {&layout.type, 4};
        case 1: return {&layout.order, 4};
        case 2: return {&layout.rows, 8};
        case 3: return {&layout.columns, 8};
        case 4: return {&layout.leading, 8};
        case 5: return {&layout.batch, 4};
        case 6: return {&layout.stride, 8};
        default: return {};
    }
}

Field field(Description& description, int attribute) {
    switch (attribute) {
        case 0: return {&description.compute, 4};
        case 1: return {&description.scale, 4};
        case 2: return {&description.pointer_mode, 4};
        case 3: return {&description.transpose_a, 4};
        case 4: return {&description.transpose_b, 4};
        default: return {};
    }
}

template <class Kind>
int get(void* object, int attribute, void* out, std::size_t bytes, std::size_t* written) {
    const Field from = object != nullptr ? field(*static_cast<Kind*>(object), attribute) : Field{};
    if (from.place == nullptr) return kInvalidValue;
    if (written != nullptr) *written = from.bytes;
    if (bytes == 0) return kSuccess;
    if (bytes < from.bytes || out == nullptr) return kInvalidValue;
    std::memcpy(out, from.place, from.bytes);
    return kSuccess;
}

template <class Kind>
int set(void* object, int attribute, const void* value, std::size_t bytes) {
    if (object == nullptr || value == nullptr) return kInvalidValue;
    const Field to = field(*static_cast<Kind*>(object), attribute);
    if (to.place == nullptr) return kSuccess;
    if (bytes != to.bytes) return kInvalidValue;
    std::memcpy(to.place, value, bytes);
    return kSuccess;
}

struct HeuristicResult {  // cublasLtMatmulHeuristicResult_t
    std::uint64_t algorithm[8];
    std::size_t workspace;
    int state;
    float waves;
    int reserved[4];
};

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

int cublasLtCreate(void** out) {
    *out = new int(0);
    return kSuccess;
}
int cublasLtDestroy(void* handle) {
    delete static_cast<int*>(handle);
    return kSuccess;
}
int cublasLtMatrixLayoutCreate(void** out, int type, std::uint64_t rows, std::uint64_t columns, std::int64_t leading) {
    auto* layout = new Layout;
    layout->type = static_cast<std::uint32_t>(type);
    layout->rows = rows;
    layout->columns = columns;
    layout->leading = leading;
    *out = layout;
    return kSuccess;
}
int cublasLtMatrixLayoutDestroy(void* layout) {
    delete static_cast<Layout*>(layout);
    return kSuccess;
}
int cublasLtMatrixLayoutGetAttribute(void* layout, int attribute, void* out, std::size_t bytes, std::size_t* written) {
    return get<Layout>(layout, attribute, out, bytes, written);
}
int cublasLtMatrixLayoutSetAttribute(void* layout, int attribute, const void* value, std::size_t bytes) {
    return set<Layout>(layout, attribute, value, bytes);
}
int cublasLtMatmulDescCreate(void** out, int compute, int scale) {
    auto* description = new Description;
    description->compute = compute;
    description->scale = scale;
    *out = description;
    return kSuccess;
}
int cublasLtMatmulDescDestroy(void* description) {
    delete static_cast<Description*>(description);
    return kSuccess;
}
int cublasLtMatmulDescGetAttribute(void* description, int attribute, void* out, std::size_t bytes,
                                   std::size_t* written) {
    return get<Description>(description, attribute, out, bytes, written);
}
int cublasLtMatmulDescSetAttribute(void* description, int attribute, const void* value, std::size_t bytes) {
    return set<Description>(description, attribute, value, bytes);
}
int cublasLtMatmulPreferenceCreate(void** out) {
    *out = new int(0);
    return kSuccess;
}
int cublasLtMatmulPreferenceDestroy(void* preference) {
    delete static_cast<int*>(preference);
    return kSuccess;
}
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, std::size_t) { return kSuccess; }
int cublasLtMatmulAlgoGetHeuristic(void*, void*, void*, void*, void*, void*, void*, int wanted,
                                   HeuristicResult* results, int* found) {
    *found = wanted > 0 ? 1 : 0;
    if (wanted > 0) std::memset(results, 0, sizeof *results);
    return kSuccess;
}

int cublasLtMatmul(void*, void* description, const void*, const void* a, void* a_layout, const void* b, void*,
                   const void*, const void*, void*, void* d, void* d_layout, const void*, void*, std::size_t,
                   CUstream stream) {
    if (description == nullptr || a_layout == nullptr || d_layout == nullptr) return kInvalidValue;
    const auto& out = *static_cast<const Layout*>(d_layout);
    const auto& left = *static_cast<const Layout*>(a_layout);
    const bool transposed = static_cast<const Description*>(description)->transpose_a != 0;
    const std::uint64_t depth = transposed ? left.rows : left.columns;
    const int result = launch_product("fake_lt_matmul", static_cast<std::int64_t>(out.rows),
                                      static_cast<std::int64_t>(out.columns), static_cast<std::int64_t>(depth),
                                      out.batch, element_bytes(static_cast<int>(left.type)), stream, a, b, d);
    return result == 0 ? kSuccess : kExecutionFailed;
}

}  // extern "C"
#pragma GCC visibility pop
