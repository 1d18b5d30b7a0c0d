// Kernels from shapes. Work and traffic are arithmetic on the shape; geometry (tile, threads, registers, shared memory)
// is that of the usual library kernels of the Hopper generation; the few efficiencies are stated beside each builder.
//
// Instruction work of memory-bound kernels counts as fp32 operations, 2 per lane-instruction: a norm takes about 6
// instructions an element (convert, multiply-add, scale, convert back, a share of reduction and addresses), so 12.
#pragma once

#include <algorithm>
#include <cstring>

#include "tierline/fake/specs.hpp"

namespace tierline::fake::build {

constexpr double mib = 1024.0 * 1024.0;

inline KernelSpec base(const char* name, Family family, std::int64_t blocks, std::int32_t threads,
                       std::int32_t registers, std::int32_t shared) {
    KernelSpec k{};
    std::strncpy(k.name, name, max_name - 1);
    k.family = family;
    k.unit = Unit::fp32;
    k.grid[0] = static_cast<std::uint32_t>(std::max<std::int64_t>(1, blocks));
    k.grid[1] = k.grid[2] = 1;
    k.block[0] = static_cast<std::uint32_t>(threads);
    k.block[1] = k.block[2] = 1;
    k.registers_per_thread = registers;
    k.dynamic_shared_bytes = shared;
    k.compute_efficiency = 0.85;
    k.dram_efficiency = 0.97;
    k.saturating_threads = 1024;
    k.block_floor_ns = 900;                // two dependent DRAM accesses and the block's start
    k.element_bytes = 2;
    return k;
}

struct Tile {
    const char* name;
    int m, n, threads, registers, shared, multicast;
    double efficiency;                     // of the tensor peak when its SM is full and fed
};
// 128x256: three warp groups fill the register file, one block an SM, a cluster of two shares one operand; with 15.5
// waves of an 8192^3 GEMM this gives about 0.77 of 990 TFLOP/s, the measured 769-798.
constexpr Tile large{"sm90_gemm_bf16_128x256x64", 128, 256, 384, 168, 200 * 1024, 2, 0.80};
constexpr Tile medium{"sm90_gemm_bf16_128x128x64", 128, 128, 256, 128, 98 * 1024, 2, 0.70};   // two blocks an SM
constexpr Tile small{"sm90_gemm_bf16_64x64x64", 64, 64, 128, 96, 48 * 1024, 1, 0.45};         // four blocks an SM
constexpr Tile conv_large{"sm90_implicit_gemm_bf16_128x128x64", 128, 128, 256, 168, 98 * 1024, 1, 0.62};
constexpr Tile conv_small{"sm90_implicit_gemm_bf16_64x64x64", 64, 64, 128, 128, 40 * 1024, 1, 0.45};

inline std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// C[m,n] = A[m,k] B[k,n], bf16. A tile that sticks out of the matrix is still computed in full. DRAM traffic is the
// operands once, 1.6 times when they do not fit half of a 60 MB L2 (tiles of later waves read them again).
inline KernelSpec gemm(const Tile& t, std::int64_t m, std::int64_t n, std::int64_t k, std::int64_t batch = 1,
                       int split_k = 1) {
    const std::int64_t tiles_m = ceil_div(m, t.m), tiles_n = ceil_div(n, t.n);
    KernelSpec s = base(t.name, Family::gemm, tiles_n, t.threads, t.registers, t.shared);
    s.grid[1] = static_cast<std::uint32_t>(tiles_m);
    s.grid[2] = static_cast<std::uint32_t>(batch * split_k);
    s.unit = Unit::tensor;
    const double depth = double(k) / split_k;
    s.flops_per_block = 2.0 * t.m * t.n * depth;
    s.bytes_per_block = 2.0 * (depth * (double(std::min<std::int64_t>(t.m, m)) + double(t.n) / t.multicast) +
                               double(std::min<std::int64_t>(t.m, m)) * t.n * (split_k > 1 ? 2 : 1));
    const double once = 2.0 * batch * (double(m) * k + double(k) * n + double(m) * n * (split_k > 1 ? 2 : 1));
    const double operands = 2.0 * batch * (double(m) * k + double(k) * n);
    const double dram = once * (operands > 30 * mib ? 1.6 : 1.0);
    const double all = s.bytes_per_block * double(blocks_of(s));
    s.l2_hit = std::clamp(1 - dram / all, 0.0, 1.0);
    s.working_set_bytes = std::min(operands, 24 * mib);
    s.compute_efficiency = t.efficiency;
    s.dram_efficiency = 0.95;
    s.saturating_threads = 256;            // wide instructions: two warp groups keep the pipe busy
    s.block_floor_ns = 2500;               // prologue, pipeline fill, epilogue
    s.shape[0] = m;
    s.shape[1] = n;
    s.shape[2] = k;
    s.shape[3] = batch;
    return s;
}

// Few rows against a weight matrix (decode): reads the weights once; 128 threads a block and long dependent loads, so
// with three blocks an SM reaches about 80 % of its draw and speed keeps growing beyond 48 SMs (published: .72 at 48,
// .86 at 64; that benchmark's 50 MB of weights stayed partly in L2, these stream).
inline KernelSpec skinny(std::int64_t m, std::int64_t n, std::int64_t k, int split_k) {
    KernelSpec s = base("sm90_gemv_splitk_bf16_64x64", Family::skinny_gemm, ceil_div(n, 64), 128, 96, 40 * 1024);
    s.grid[1] = static_cast<std::uint32_t>(split_k);
    s.unit = Unit::tensor;
    const double depth = double(k) / split_k;
    s.flops_per_block = 2.0 * 16 * double(ceil_div(m, 16)) * 64 * depth;   // rows padded to 16
    s.bytes_per_block = 2.0 * depth * 64 + 2.0 * double(m) * depth + 4.0 * double(m) * 64;
    const double dram = 2.0 * (double(n) * k + double(m) * k) + 4.0 * double(m) * n;
    s.l2_hit = std::clamp(1 - dram / (s.bytes_per_block * double(blocks_of(s))), 0.0, 1.0);
    s.working_set_bytes = 2.0 * double(m) * k + 4 * mib;   // weights stream through
    s.compute_efficiency = 0.6;
    s.dram_efficiency = 0.95;
    s.saturating_threads = 480;
    s.block_floor_ns = 2500;
    s.shape[0] = m;
    s.shape[1] = n;
    s.shape[2] = k;
    s.shape[3] = 1;
    return s;
}

// One row a block, read and written once.
inline KernelSpec norm(const char* name, std::int64_t rows, std::int64_t columns, double tensors = 2) {
    KernelSpec s = base(name, Family::norm, rows, 256, 32, 512);
    s.flops_per_block = 12.0 * double(columns);
    s.bytes_per_block = 2.0 * tensors * double(columns);
    s.working_set_bytes = 4 * mib;
    s.shape[0] = rows;
    s.shape[1] = columns;
    return s;
}

// `tensors` reads and writes of 2 bytes an element; 1024 elements a block of 128 threads with 16-byte accesses.
inline KernelSpec elementwise(const char* name, std::int64_t elements, double tensors, double flops_per_element = 10) {
    KernelSpec s = base(name, Family::elementwise, ceil_div(elements, 1024), 128, 32, 0);
    s.flops_per_block = flops_per_element * double(std::min<std::int64_t>(elements, 1024));
    s.bytes_per_block = 2.0 * tensors * double(std::min<std::int64_t>(elements, 1024));
    s.working_set_bytes = 4 * mib;
    s.shape[0] = elements;
    return s;
}

// Adam on fp32 master weights: parameter, two moments read and written, gradient read: 28 bytes; about 20 instructions.
inline KernelSpec adam(std::int64_t parameters) {
    KernelSpec s = base("multi_tensor_apply_kernel_adam", Family::optimizer, ceil_div(parameters, 8192), 512, 48, 0);
    s.flops_per_block = 40.0 * 8192;
    s.bytes_per_block = 28.0 * 8192;
    s.working_set_bytes = 8 * mib;
    s.dram_efficiency = 0.93;              // seven streams
    s.element_bytes = 4;
    s.shape[0] = parameters;
    return s;
}

// Reductions and small gathers: partial coalescing.
inline KernelSpec reduction(const char* name, std::int64_t elements, double bytes_per_element = 2) {
    KernelSpec s = base(name, Family::reduction, std::min<std::int64_t>(1024, ceil_div(elements, 4096)), 256, 32, 2048);
    s.flops_per_block = 6.0 * double(elements) / double(blocks_of(s));
    s.bytes_per_block = bytes_per_element * double(elements) / double(blocks_of(s));
    s.working_set_bytes = 2 * mib;
    s.dram_efficiency = 0.85;
    s.block_floor_ns = 2200;               // tree and the last block's pass
    return s;
}

inline KernelSpec embedding(std::int64_t rows, std::int64_t columns) {
    KernelSpec s = base("indexSelectLargeIndex", Family::embedding, rows, 128, 32, 0);
    s.flops_per_block = 8.0 * double(columns);
    s.bytes_per_block = 4.0 * double(columns);
    s.working_set_bytes = 16 * mib;
    s.dram_efficiency = 0.75;              // random rows
    return s;
}

// Flash attention, forward: a block takes 128 queries of one head over all (causal: half the) keys. 0.62 of the peak:
// 600-650 TFLOP/s is what the third generation reaches. The backward pass has 2.5 times the work.
inline KernelSpec attention(const char* name, std::int64_t batch, std::int64_t heads, std::int64_t length,
                            std::int64_t width, bool causal, double work = 1) {
    KernelSpec s = base(name, Family::attention, ceil_div(length, 128), 384, 168, 160 * 1024);
    s.grid[1] = static_cast<std::uint32_t>(heads);
    s.grid[2] = static_cast<std::uint32_t>(batch);
    s.unit = Unit::tensor;
    const double keys = double(length) * (causal ? 0.5 : 1.0);
    s.flops_per_block = work * 4.0 * 128 * keys * double(width);
    s.bytes_per_block = work * 2.0 * (2 * keys * double(width) + 2 * 128.0 * double(width));
    const double once = work * 8.0 * double(batch) * double(heads) * double(length) * double(width);
    s.l2_hit = std::clamp(1 - once / (s.bytes_per_block * double(blocks_of(s))), 0.0, 1.0);
    s.working_set_bytes = std::min(once, 16 * mib);
    s.compute_efficiency = 0.62 - (work > 1 ? 0.1 : 0);
    s.saturating_threads = 256;
    s.block_floor_ns = 4000;
    s.shape[0] = batch;
    s.shape[1] = heads;
    s.shape[2] = length;
    s.shape[3] = width;
    return s;
}

// One query a sequence over its cache; bound by bytes and by latency: an SM reaches a third of its draw, so speed is
// nearly linear in SMs for big batches (published: .54 at 64 of 132).
inline KernelSpec decode_attention(std::int64_t batch, std::int64_t kv_heads, std::int64_t context, std::int64_t width,
                                   int splits) {
    KernelSpec s = base("flash_fwd_splitkv_kernel", Family::decode_attention, splits, 128, 160, 64 * 1024);
    s.grid[1] = static_cast<std::uint32_t>(kv_heads);
    s.grid[2] = static_cast<std::uint32_t>(batch);
    s.unit = Unit::tensor;
    const double keys = double(context) / splits;
    s.flops_per_block = 4.0 * 16 * keys * double(width);   // grouped queries padded to 16 rows
    s.bytes_per_block = 4.0 * keys * double(width);
    s.working_set_bytes = 4 * mib;
    s.compute_efficiency = 0.35;
    s.saturating_threads = 1200;
    s.block_floor_ns = 3500;
    s.shape[0] = batch;
    s.shape[1] = kv_heads;
    s.shape[2] = context;
    s.shape[3] = width;
    return s;
}

// Convolution as an implicit GEMM, channels last: m = batch*p*p, n = filters, k = channels*r*r. DRAM sees input, weights
// and output once. Few filters take the small tile.
inline KernelSpec conv(std::int64_t batch, std::int64_t p, std::int64_t channels, std::int64_t filters, std::int64_t r,
                       std::int64_t stride) {
    const std::int64_t m = batch * p * p;
    const Tile& tile = filters < 128 || m * filters < 64 * 128 * 128 ? conv_small : conv_large;
    KernelSpec s = gemm(tile, m, filters, channels * r * r);
    s.family = Family::conv;
    const double once = 2.0 * (double(m) * double(stride * stride) * double(channels) +
                               double(channels * r * r) * double(filters) + double(m) * double(filters));
    s.l2_hit = std::clamp(1 - once / (s.bytes_per_block * double(blocks_of(s))), 0.0, 1.0);
    s.working_set_bytes = std::min(once, 20 * mib);
    return s;
}

// Ring collective: `channels` blocks that mostly wait for the links (450 GB/s a direction, 400 of them useful) and move
// about three bytes of memory for each byte of the message.
inline KernelSpec all_reduce(std::int64_t bytes, int ranks) {
    KernelSpec s = base("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", Family::collective, 24, 640, 96, 82 * 1024);
    s.bytes_per_block = 3.0 * double(bytes) / 24;
    s.flops_per_block = 4.0 * double(bytes) / 24;
    s.working_set_bytes = 8 * mib;
    s.saturating_threads = 640;
    s.block_floor_ns = 12000 + static_cast<std::int64_t>(2.0 * (ranks - 1) / ranks * double(bytes) / 400e9 * 1e9);
    return s;
}

inline KernelSpec spin(const char* name, int blocks, std::uint32_t token) {
    KernelSpec s = base(name, Family::spin, blocks, 32, 24, 0);
    s.spin = Spin::until_released;
    s.spin_token = token;
    s.compute_efficiency = 0.5;            // one warp polling: 1/16 of an SM's issue slots below
    s.saturating_threads = 256;
    return s;
}

}  // namespace tierline::fake::build
