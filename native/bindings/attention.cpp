// tierline._attention: attention of decoding sequences, for engine/cpu_attention.py. A module of its own, since it takes its
// threads from the OpenMP runtime that PyTorch has brought into the process: it is imported after torch, and cannot be
// imported without.
#include <nanobind/nanobind.h>

#include <cstdint>

#include "../engine/paged_attention.hpp"

namespace nb = nanobind;
using tierline::engine::PagedDecode;

namespace {

template <typename T> T* at(std::uintptr_t address) { return reinterpret_cast<T*>(address); }

} // namespace

NB_MODULE(_attention, module) {
    module.def("can_decode", &tierline::engine::can_decode, nb::arg("head_dim"), nb::arg("block_tokens"));
    module.def(
        "decode",
        [](std::uintptr_t query, std::uintptr_t keys, std::uintptr_t values, std::uintptr_t out, std::uintptr_t tables,
           std::uintptr_t lengths, int sequences, int kv_heads, int group, int head_dim, int blocks, int block_tokens,
           int table_width, float scale) {
            const PagedDecode work{at<const std::uint16_t>(query), at<const std::uint16_t>(keys),
                                   at<const std::uint16_t>(values), at<std::uint16_t>(out),
                                   at<const std::int32_t>(tables),  at<const std::int32_t>(lengths),
                                   sequences, kv_heads, group, head_dim, blocks, block_tokens, table_width, scale};
            nb::gil_scoped_release released;
            tierline::engine::decode(work);
        },
        "Addresses of contiguous arrays as engine/paged_attention.hpp has them; the caller has checked their shapes.");
}
