#include "decoder_rows.hpp"

#include <cmath>
#include <cstring>

// The same code is compiled twice where the compiler can: for processors with AVX-512, and for all others.
#if defined(__x86_64__)
#define TIERLINE_WIDE __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
#else
#define TIERLINE_WIDE
#endif
#define TIERLINE_INLINE inline __attribute__((always_inline))

namespace tierline::engine {
namespace {

constexpr std::int64_t kWorthThreads = 1 << 16; // fewer numbers are done before a second thread has woken

struct Bf16 {
    std::uint16_t bits;
};

TIERLINE_INLINE float widen(float number) { return number; }
TIERLINE_INLINE float widen(Bf16 number) {
    const std::uint32_t bits = static_cast<std::uint32_t>(number.bits) << 16;
    float wide;
    std::memcpy(&wide, &bits, sizeof wide);
    return wide;
}

TIERLINE_INLINE void narrow(float number, float& out) { out = number; }
TIERLINE_INLINE void narrow(float number, Bf16& out) { // to nearest, ties to even
    std::uint32_t bits;
    std::memcpy(&bits, &number, sizeof bits);
    const std::uint32_t rounded = (bits + 0x7fffU + ((bits >> 16) & 1U)) >> 16;
    out.bits = static_cast<std::uint16_t>((bits & 0x7fffffffU) > 0x7f800000U ? 0x7fc0U : rounded);
}

template <typename T> TIERLINE_INLINE float rounded(float number) {
    T narrowed;
    narrow(number, narrowed);
    return widen(narrowed);
}

template <typename T> TIERLINE_INLINE void norm_rows(const Norm& work, std::int64_t begin, std::int64_t end) {
    const int width = work.width;
    const T* weight = static_cast<const T*>(work.weight);
    for (std::int64_t row = begin; row < end; ++row) {
        T* x = static_cast<T*>(work.x) + row * width;
        T* out = static_cast<T*>(work.out) + row * width;
        if (work.added != nullptr) {
            const T* added = static_cast<const T*>(work.added) + row * width;
#pragma omp simd
            for (int i = 0; i < width; ++i) { narrow(widen(x[i]) + widen(added[i]), x[i]); }
        }
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int i = 0; i < width; ++i) { squares += widen(x[i]) * widen(x[i]); }
        const float scale = 1.0F / std::sqrt(squares / static_cast<float>(width) + work.eps);
#pragma omp simd
        for (int i = 0; i < width; ++i) { narrow(widen(weight[i]) * rounded<T>(widen(x[i]) * scale), out[i]); }
    }
}

template <typename T> TIERLINE_INLINE void rotate(T* head, const T* cos, const T* sin, int head_dim) {
    const int half = head_dim / 2;
#pragma omp simd
    for (int i = 0; i < half; ++i) {
        const float first = widen(head[i]), second = widen(head[i + half]);
        narrow(rounded<T>(first * widen(cos[i])) + rounded<T>(-second * widen(sin[i])), head[i]);
        narrow(rounded<T>(second * widen(cos[i + half])) + rounded<T>(first * widen(sin[i + half])), head[i + half]);
    }
}

template <typename T> TIERLINE_INLINE void rotary_rows(const Rotary& work, std::int64_t begin, std::int64_t end) {
    const int dim = work.head_dim;
    const std::size_t head_bytes = static_cast<std::size_t>(dim) * sizeof(T);
    for (std::int64_t row = begin; row < end; ++row) {
        T* qkv = static_cast<T*>(work.qkv) + row * (work.heads + 2 * work.kv_heads) * dim;
        const T* cos = static_cast<const T*>(work.cos) + row * dim;
        const T* sin = static_cast<const T*>(work.sin) + row * dim;
        for (int head = 0; head < work.heads + work.kv_heads; ++head) { rotate(qkv + head * dim, cos, sin, dim); }
        if (row >= work.placed) { continue; }
        for (int head = 0; head < work.kv_heads; ++head) {
            const std::int64_t at = (head * work.positions + work.slots[row]) * dim;
            std::memcpy(static_cast<T*>(work.keys) + at, qkv + (work.heads + head) * dim, head_bytes);
            std::memcpy(static_cast<T*>(work.values) + at, qkv + (work.heads + work.kv_heads + head) * dim, head_bytes);
        }
    }
}

template <typename T> TIERLINE_WIDE void norm_wide(const Norm& work, std::int64_t begin, std::int64_t end) {
    norm_rows<T>(work, begin, end);
}
template <typename T> void norm_plain(const Norm& work, std::int64_t begin, std::int64_t end) {
    norm_rows<T>(work, begin, end);
}
template <typename T> TIERLINE_WIDE void rotary_wide(const Rotary& work, std::int64_t begin, std::int64_t end) {
    rotary_rows<T>(work, begin, end);
}
template <typename T> void rotary_plain(const Rotary& work, std::int64_t begin, std::int64_t end) {
    rotary_rows<T>(work, begin, end);
}

bool is_wide() {
#if defined(__x86_64__)
    static const bool wide = [] {
        __builtin_cpu_init();
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }();
    return wide;
#else
    return false;
#endif
}

using NormRun = void (*)(const Norm&, std::int64_t, std::int64_t);
using RotaryRun = void (*)(const Rotary&, std::int64_t, std::int64_t);

NormRun norm_for(Number number) {
    if (number == Number::kBf16) { return is_wide() ? &norm_wide<Bf16> : &norm_plain<Bf16>; }
    return is_wide() ? &norm_wide<float> : &norm_plain<float>;
}

RotaryRun rotary_for(Number number) {
    if (number == Number::kBf16) { return is_wide() ? &rotary_wide<Bf16> : &rotary_plain<Bf16>; }
    return is_wide() ? &rotary_wide<float> : &rotary_plain<float>;
}

template <typename Work>
void over_rows(const Work& work, std::int64_t width, void (*run)(const Work&, std::int64_t, std::int64_t)) {
    if (work.rows * width < kWorthThreads) {
        run(work, 0, work.rows);
        return;
    }
    constexpr std::int64_t kRows = 16;
    const std::int64_t pieces = (work.rows + kRows - 1) / kRows;
#pragma omp parallel for schedule(static)
    for (std::int64_t piece = 0; piece < pieces; ++piece) {
        const std::int64_t end = (piece + 1) * kRows;
        run(work, piece * kRows, end < work.rows ? end : work.rows);
    }
}

} // namespace

void rms_norm(const Norm& work, Number number) { over_rows(work, work.width, norm_for(number)); }

void rms_norm_rows(const Norm& work, Number number, std::int64_t begin, std::int64_t end) {
    norm_for(number)(work, begin, end);
}

void rotate_and_place(const Rotary& work, Number number) {
    over_rows(work, static_cast<std::int64_t>(work.heads + 2 * work.kv_heads) * work.head_dim, rotary_for(number));
}

void rotate_and_place_rows(const Rotary& work, Number number, std::int64_t begin, std::int64_t end) {
    rotary_for(number)(work, begin, end);
}

} // namespace tierline::engine
