"""A Llama-like backbone in bf16 on a CPU with AMX: one native call for an iteration that only decodes, one a layer where
chunks of prompts are in it (native/engine/decoder_stack).

Weights are copied once, cut into the processor's tiles, into memory of large pages: a step reads all of them, and with small
pages it waits for their addresses too. The originals can be let go.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import torch

from tierline.engine.attention import StepLayout, attend, split_heads
from tierline.engine.cpu_attention import native

ROWS = 16  # of a tile: buffers have a multiple of it
PANEL = 32  # sizes of weights are multiples of it
STORE, ADD, GATE = range(3)  # what native/engine/tiled_product does with a product


def can_tile(weight: torch.Tensor) -> bool:
    """Whether this processor has tiles, and this weight [n, k] the type and sizes for them."""
    if native is None or not native.can_tile() or weight.dtype is not torch.bfloat16 or weight.device.type != "cpu":
        return False
    return not any(size % PANEL for size in weight.shape)


def can_tile_all(backbone: Any) -> bool:
    """Whether a backbone that `decoder.can_fuse` knows can become a `TiledStack`."""
    for layer in backbone.layers:
        attention, mlp = layer.self_attn, layer.mlp
        unbiased = (attention.o_proj, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, *unbiased)
        if not all(can_tile(each.weight) for each in linears) or any(each.bias is not None for each in unbiased):
            return False
    return True


class Tiles:
    """A weight [n, k] cut into tiles. n and k are multiples of 32."""

    def __init__(self, weight: torch.Tensor) -> None:
        weight = weight.detach().contiguous()
        self.n, self.k = weight.shape
        self._memory = mmap.mmap(-1, weight.nbytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        if hasattr(mmap, "MADV_HUGEPAGE"):
            self._memory.madvise(mmap.MADV_HUGEPAGE)
        self._numbers = torch.frombuffer(self._memory, dtype=torch.bfloat16)
        self.address = self._numbers.data_ptr()
        native.cut_into_tiles(weight.data_ptr(), self.n, self.k, self.address)

    def times(self, x: torch.Tensor) -> torch.Tensor:
        """x [rows, k] W^T, [rows, n]."""
        rows = padded(x)
        out = torch.empty((len(rows), self.n), dtype=torch.bfloat16)
        native.multiply(rows.data_ptr(), self.address, 0, out.data_ptr(), len(rows), self.n, self.k, STORE)
        return out[: len(x)]


class TiledHead:
    """From hidden states to logits."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._tiles = Tiles(weight)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self._tiles.times(x)


def padded(x: torch.Tensor) -> torch.Tensor:
    """`x` [rows, width] with rows added, of any content, up to a multiple of `ROWS`; a copy."""
    out = torch.zeros((-(-len(x) // ROWS) * ROWS, x.shape[1]), dtype=x.dtype)
    out[: len(x)] = x
    return out


class TiledStack:
    """All layers; the final norm is not one of them. With `lets_go` the backbone loses the weights that were copied: it can
    not be run itself any more."""

    def __init__(self, backbone: Any, lets_go: bool) -> None:
        first = backbone.layers[0]
        attention, mlp = first.self_attn, first.mlp
        self._hidden, self._inner = mlp.gate_proj.in_features, mlp.gate_proj.out_features
        self._head_dim = int(attention.head_dim)
        self._heads = attention.q_proj.out_features // self._head_dim
        self._kv_heads = attention.k_proj.out_features // self._head_dim
        self._scaling = float(attention.scaling)
        self._stack = native.Stack(self._hidden, self._inner, self._heads, self._kv_heads, self._head_dim)
        self._count = len(backbone.layers)
        self._kept: list[Any] = []  # what the stack has the addresses of
        for layer in backbone.layers:
            self._add(layer)
            if lets_go:
                for linear in (*layer.self_attn.children(), *layer.mlp.children()):
                    if isinstance(linear, torch.nn.Linear):
                        _let_go(linear)

    def _add(self, layer: Any) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        inputs = (attention.q_proj, attention.k_proj, attention.v_proj)
        bias: torch.Tensor | None = None
        if attention.q_proj.bias is not None:
            bias = torch.cat([linear.bias.detach() for linear in inputs]).float()
        qkv = Tiles(torch.cat([linear.weight for linear in inputs]))
        pairs = [linear.weight.view(-1, PANEL // 2, self._hidden) for linear in (mlp.gate_proj, mlp.up_proj)]
        gate_up = Tiles(torch.stack(pairs, dim=1).view(-1, self._hidden))
        out, down = Tiles(attention.o_proj.weight), Tiles(mlp.down_proj.weight)
        before, between = layer.input_layernorm, layer.post_attention_layernorm
        norms = [norm.weight.detach().contiguous() for norm in (before, between)]
        self._kept += [bias, qkv, gate_up, out, down, *norms]
        self._stack.add_layer(
            norms[0].data_ptr(),
            qkv.address,
            0 if bias is None else bias.data_ptr(),
            out.address,
            norms[1].data_ptr(),
            gate_up.address,
            down.address,
            float(before.variance_epsilon),
            float(between.variance_epsilon),
        )

    def run(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, layout: StepLayout) -> torch.Tensor:
        """Hidden states after the last layer, [rows, hidden]. `cos` and `sin` [rows, head_dim]."""
        placed, heads, kv_heads = len(layout.slots), self._heads, self._kv_heads
        x = padded(x[:placed])
        width, qkv_width = heads * self._head_dim, (heads + 2 * kv_heads) * self._head_dim

        def room(columns: int) -> torch.Tensor:
            return torch.empty((len(x), columns), dtype=torch.bfloat16)

        normed, qkv, attended, mid = room(self._hidden), room(qkv_width), room(width), room(self._inner)
        attended[placed:] = 0
        arena, decodes = layout.arena, layout.decodes
        alone = None if layout.chunks or decodes is None or decodes.index is not None else decodes

        def halves(begin: int, end: int) -> None:
            self._stack.run(
                x.data_ptr(),
                normed.data_ptr(),
                qkv.data_ptr(),
                attended.data_ptr(),
                mid.data_ptr(),
                cos.data_ptr(),
                sin.data_ptr(),
                arena.keys.data_ptr(),
                arena.values.data_ptr(),
                layout.slots.data_ptr(),
                alone.tables.data_ptr() if alone else 0,
                alone.lengths.data_ptr() if alone else 0,
                len(x),
                placed,
                begin,
                end,
                arena.keys.shape[2],
                arena.block_tokens,
                alone.tables.shape[1] if alone else 0,
                self._scaling,
                alone is not None,
            )

        if alone:
            halves(0, 2 * self._count)
            return x[:placed]
        query, key, value = split_heads(qkv[:placed], heads, kv_heads)
        halves(0, 1)
        for layer in range(self._count):
            attended[:placed] = attend(layout, layer, query, key, value, self._scaling).view(placed, width)
            halves(2 * layer + 1, min(2 * layer + 3, 2 * self._count))
        return x[:placed]


def _let_go(linear: torch.nn.Linear) -> None:
    """Delete a weight. Where it lies in a file that is mapped whole, that frees nothing: its pages are given back."""
    weight = linear.weight.detach()
    page = mmap.PAGESIZE
    begin = -(-weight.data_ptr() // page) * page
    end = (weight.data_ptr() + weight.nbytes) // page * page
    if begin < end and hasattr(mmap, "MADV_DONTNEED"):
        libc = ctypes.CDLL(None)
        libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), mmap.MADV_DONTNEED)
    del linear.weight
