// Attention of decoding sequences over a paged KV arena, on CPUs with AVX-512 and its bf16 dot product. One query a sequence;
// keys and values are read where they lie, once for all query heads that share them.
#pragma once

#include <cstdint>
#include <vector>

namespace tierline::engine {

// All of bf16, contiguous. Keys and values: [kv_heads, blocks, block_tokens, head_dim], of one layer. Query and out:
// [sequences, kv_heads * group, head_dim]; a query's row may be longer, `query_stride` numbers. Tables: [sequences, table_width] block numbers, of which sequence s uses the first
// ceil(lengths[s] / block_tokens).
struct PagedDecode {
    const std::uint16_t* query;
    const std::uint16_t* keys;
    const std::uint16_t* values;
    std::uint16_t* out;
    const std::int32_t* tables;
    const std::int32_t* lengths;
    std::int64_t query_stride;
    int sequences;
    int kv_heads;
    int group;
    int head_dim;
    int blocks;
    int block_tokens;
    int table_width;
    float scale;
};

// Whether this processor has the instructions and these sizes are provided for.
bool can_decode(int head_dim, int block_tokens);

// Runs on as many threads as OpenMP is set to.
void decode(const PagedDecode& work);

// One of sequences * kv_heads pieces. `scores`: room to work in, kept from piece to piece.
void decode_piece(const PagedDecode& work, int piece, std::vector<float>& scores);

} // namespace tierline::engine
