// What a Llama-like decoder layer does between its products, row by row: the norms with the residual sum before them, and the
// rotation of queries and keys on their way into the paged arena. Of float or bf16; every bf16 result is rounded where
// PyTorch's own operations would round it.
#pragma once

#include <cstdint>

namespace tierline::engine {

enum class Number { kFloat32, kBf16 };

// Rows of `width` numbers, contiguous. out = x / sqrt(mean(x^2) + eps) * weight. With `added`, x becomes x + added first.
struct Norm {
    void* x;
    const void* added; // null: nothing is added
    const void* weight;
    void* out;
    std::int64_t rows;
    int width;
    float eps;
};
void rms_norm(const Norm& work, Number number); // on OpenMP's threads, where that is worth it
void rms_norm_rows(const Norm& work, Number number, std::int64_t begin, std::int64_t end);

// `qkv`: a row holds `heads` queries, `kv_heads` keys and as many values of `head_dim` numbers. Queries and keys are rotated
// where they stand, by cos and sin [rows, head_dim] (number i is paired with number i + head_dim / 2). Keys and values of the
// first `placed` rows are also written to the arena [kv_heads, positions, head_dim], at position slots[row].
struct Rotary {
    void* qkv;
    const void* cos;
    const void* sin;
    void* keys;
    void* values;
    const std::int64_t* slots;
    std::int64_t rows;
    std::int64_t placed;
    std::int64_t positions;
    int heads;
    int kv_heads;
    int head_dim;
};
void rotate_and_place(const Rotary& work, Number number);
void rotate_and_place_rows(const Rotary& work, Number number, std::int64_t begin, std::int64_t end);

} // namespace tierline::engine
