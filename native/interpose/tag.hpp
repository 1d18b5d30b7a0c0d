// Work and traffic of library calls, from their shapes, and the thread's tag while such a call runs.
#pragma once

#include "thread.hpp"

#include <cstdint>
#include <initializer_list>
#include <string_view>

namespace tierline::interpose {

struct Work {
    double flops = 0.0;
    double bytes = 0.0;
};

// F = 2·M·N·K and B = size·(M·K + K·N + (1 + beta)·M·N), times the batch.
Work gemm_work(double m, double n, double k, double batch, double a_bytes, double b_bytes, double c_bytes, bool adds);

// F = 2·N·K·P·Q·(C/groups)·R·S from the extents of the output (N, K, P, Q) and the filter (K, C/groups, R, S);
// `elements` of input, filter and output are moved once each.
Work convolution_work(double output_elements, double filter_elements, double filter_outputs, double input_elements,
                      double element_bytes);

// F = 4·B·H·Sq·Sk·D, half of it when causal; B = size·B·(H·(2·Sq)·D + Hkv·(2·Sk)·D).
Work attention_work(double batch, double heads, double kv_heads, double queries, double keys, double width,
                    double element_bytes, bool causal);

std::uint64_t shape_hash(std::string_view op, std::initializer_list<std::int64_t> extents);

// Is this kernel the one that does a call's work, or one of its helpers (reduce of a split sum, layout, fill)?
bool takes_the_work(std::string_view kernel);

// Sets the thread's tag for one library call. A call within a call keeps the outer tag.
class Tagged {
public:
    Tagged(std::uint64_t shape, const Work& work);
    ~Tagged();
    Tagged(const Tagged&) = delete;
    Tagged& operator=(const Tagged&) = delete;
};

}  // namespace tierline::interpose
