// All layers of a Llama-like decoder in bf16, in one call and one team of threads, which waits for each other between the
// parts of a layer without going to sleep: with a few dozen rows a part takes tens of microseconds.
#pragma once

#include <cstdint>
#include <vector>

#include "decoder_rows.hpp"
#include "paged_attention.hpp"

namespace tierline::engine {

struct DecoderLayer {
    const std::uint16_t* norm_before; // [hidden]
    const std::uint16_t* qkv;         // tiles of [(heads + 2 * kv_heads) * head_dim, hidden]
    const float* qkv_bias;            // or null
    const std::uint16_t* out;         // tiles of [hidden, heads * head_dim]
    const std::uint16_t* norm_between;
    const std::uint16_t* gate_up; // tiles of [2 * inner, hidden], 16 columns of the gate and 16 of up in turn
    const std::uint16_t* down;    // tiles of [hidden, inner]
    float eps_before;
    float eps_between;
};

struct DecoderShape {
    int hidden;
    int inner;
    int heads;
    int kv_heads;
    int head_dim;
};

// x [rows, hidden] is what goes in and comes out; normed [rows, hidden], qkv [rows, (heads + 2 * kv_heads) * head_dim],
// attended [rows, heads * head_dim] and mid [rows, inner] are room to work in. Rows: a multiple of kTileRows, of which the first
// `placed` are somebody's; cos and sin [placed, head_dim].
// Halves `begin` to `end`: 2 * layer is what comes before attention, 2 * layer + 1 attention and what comes after it. Where
// `decodes`, all placed rows are decoding sequences and attention is made as well (tables and lengths as PagedDecode has them);
// else the caller has put it into `attended`.
struct StackStep {
    std::uint16_t* x;
    std::uint16_t* normed;
    std::uint16_t* qkv;
    std::uint16_t* attended;
    std::uint16_t* mid;
    const std::uint16_t* cos;
    const std::uint16_t* sin;
    std::uint16_t* keys; // of layer 0; the next layer's follow
    std::uint16_t* values;
    const std::int64_t* slots;
    const std::int32_t* tables;
    const std::int32_t* lengths;
    std::int64_t rows;
    std::int64_t placed;
    int begin;
    int end;
    int blocks;
    int block_tokens;
    int table_width;
    float scale;
    bool decodes;
};

void run_stack(const DecoderShape& shape, const std::vector<DecoderLayer>& layers, const StackStep& step);

} // namespace tierline::engine
