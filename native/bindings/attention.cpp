// tierline._attention: attention of decoding sequences and the rows of decoder layers, for engine/cpu_attention.py and
// engine/decoder.py. A module of its own, since it takes its threads from the OpenMP runtime that PyTorch has brought into the
// process: it is imported after torch, and cannot be imported without.
#include <nanobind/nanobind.h>

#include <cstdint>
#include <vector>

#include "../engine/decoder_rows.hpp"
#include "../engine/decoder_stack.hpp"
#include "../engine/paged_attention.hpp"
#include "../engine/tiled_product.hpp"

namespace nb = nanobind;
using tierline::engine::After;
using tierline::engine::DecoderLayer;
using tierline::engine::DecoderShape;
using tierline::engine::Norm;
using tierline::engine::Number;
using tierline::engine::PagedDecode;
using tierline::engine::Product;
using tierline::engine::Rotary;
using tierline::engine::StackStep;

namespace {

template <typename T> T* at(std::uintptr_t address) { return reinterpret_cast<T*>(address); }

using Address = std::uintptr_t;

// The weights' addresses; whoever made it keeps them.
struct Stack {
    DecoderShape shape;
    std::vector<DecoderLayer> layers;
};

Number number(bool bf16) { return bf16 ? Number::kBf16 : Number::kFloat32; }

} // namespace

NB_MODULE(_attention, module) {
    module.def("can_decode", &tierline::engine::can_decode, nb::arg("head_dim"), nb::arg("block_tokens"));
    module.def(
        "decode",
        [](std::uintptr_t query, std::uintptr_t keys, std::uintptr_t values, std::uintptr_t out, std::uintptr_t tables,
           std::uintptr_t lengths, std::int64_t query_stride, int sequences, int kv_heads, int group, int head_dim,
           int blocks, int block_tokens, int table_width, float scale) {
            const PagedDecode work{at<const std::uint16_t>(query), at<const std::uint16_t>(keys),
                                   at<const std::uint16_t>(values), at<std::uint16_t>(out),
                                   at<const std::int32_t>(tables),  at<const std::int32_t>(lengths),
                                   query_stride, sequences, kv_heads, group, head_dim, blocks, block_tokens, table_width,
                                   scale};
            nb::gil_scoped_release released;
            tierline::engine::decode(work);
        },
        "Addresses of contiguous arrays as engine/paged_attention.hpp has them; the caller has checked their shapes.");
    module.def(
        "rms_norm",
        [](std::uintptr_t x, std::uintptr_t added, std::uintptr_t weight, std::uintptr_t out, std::int64_t rows, int width,
           float eps, bool bf16) {
            const Norm work{at<void>(x), at<const void>(added), at<const void>(weight), at<void>(out), rows, width, eps};
            nb::gil_scoped_release released;
            tierline::engine::rms_norm(work, number(bf16));
        },
        "engine/decoder_rows.hpp; `added` = 0: nothing is added.");
    module.def(
        "rotate_and_place",
        [](std::uintptr_t qkv, std::uintptr_t cos, std::uintptr_t sin, std::uintptr_t keys, std::uintptr_t values,
           std::uintptr_t slots, std::int64_t rows, std::int64_t placed, std::int64_t positions, int heads, int kv_heads,
           int head_dim, bool bf16) {
            const Rotary work{at<void>(qkv), at<const void>(cos), at<const void>(sin), at<void>(keys), at<void>(values),
                              at<const std::int64_t>(slots), rows, placed, positions, heads, kv_heads, head_dim};
            nb::gil_scoped_release released;
            tierline::engine::rotate_and_place(work, number(bf16));
        },
        "engine/decoder_rows.hpp.");
    module.def("can_tile", &tierline::engine::can_tile);
    module.def(
        "cut_into_tiles",
        [](Address weight, int n, int k, Address tiles) {
            nb::gil_scoped_release released;
            tierline::engine::cut_into_tiles(at<const std::uint16_t>(weight), n, k, at<std::uint16_t>(tiles));
        },
        "engine/tiled_product.hpp.");
    module.def(
        "multiply",
        [](Address x, Address tiles, Address bias, Address out, std::int64_t rows, int n, int k, int after) {
            const Product product{at<const std::uint16_t>(x), at<const std::uint16_t>(tiles), at<const float>(bias),
                                  at<std::uint16_t>(out), rows, n, k, static_cast<After>(after)};
            nb::gil_scoped_release released;
            tierline::engine::multiply(product);
        },
        "engine/tiled_product.hpp; `bias` = 0: none. `after`: 0 = store, 1 = add, 2 = gate.");
    nb::class_<Stack>(module, "Stack", "engine/decoder_stack.hpp.")
        .def(
            "__init__",
            [](Stack* self, int hidden, int inner, int heads, int kv_heads, int head_dim) {
                new (self) Stack{{hidden, inner, heads, kv_heads, head_dim}, {}};
            })
        .def("add_layer",
             [](Stack& self, Address norm_before, Address qkv, Address qkv_bias, Address out, Address norm_between,
                Address gate_up, Address down, float eps_before, float eps_between) {
                 self.layers.push_back({at<const std::uint16_t>(norm_before), at<const std::uint16_t>(qkv),
                                        at<const float>(qkv_bias), at<const std::uint16_t>(out),
                                        at<const std::uint16_t>(norm_between), at<const std::uint16_t>(gate_up),
                                        at<const std::uint16_t>(down), eps_before, eps_between});
             })
        .def("run", [](const Stack& self, Address x, Address normed, Address qkv, Address attended, Address mid, Address cos,
                       Address sin, Address keys, Address values, Address slots, Address tables, Address lengths,
                       std::int64_t rows, std::int64_t placed, int begin, int end, int blocks, int block_tokens,
                       int table_width, float scale, bool decodes) {
            const StackStep step{at<std::uint16_t>(x), at<std::uint16_t>(normed), at<std::uint16_t>(qkv),
                                 at<std::uint16_t>(attended), at<std::uint16_t>(mid), at<const std::uint16_t>(cos),
                                 at<const std::uint16_t>(sin), at<std::uint16_t>(keys), at<std::uint16_t>(values),
                                 at<const std::int64_t>(slots), at<const std::int32_t>(tables),
                                 at<const std::int32_t>(lengths), rows, placed, begin, end, blocks, block_tokens,
                                 table_width, scale, decodes};
            nb::gil_scoped_release released;
            tierline::engine::run_stack(self.shape, self.layers, step);
        });
}
