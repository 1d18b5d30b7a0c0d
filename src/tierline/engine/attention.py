"""Attention over the paged arena, registered with Transformers under one name for every model family.

A model is called with all tokens of an iteration packed into one row: first one token of each decoding sequence, then the
chunks of prompts. The function writes their keys and values into the arena and lets each token attend to its own sequence
alone. Transformers makes no mask for an attention implementation that registers none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from tierline.engine import cpu_attention
from tierline.engine.arena import KvArena

NAME = "tierline"


@dataclass(frozen=True, slots=True)
class PromptChunk:
    """`tokens` rows from row `first` on, the positions `context..context+tokens` of a sequence. `slots`: arena positions of
    the sequence's first `context + tokens` positions. `mask` [tokens, context + tokens] is None where the chunk has no
    context: plainly causal."""

    first: int
    tokens: int
    context: int
    slots: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True, slots=True)
class Decodes:
    """The rows that decode, first in the iteration: `tables` [rows, most] are their sequences' blocks, `lengths` [rows] how
    many positions each has, its own included; both int32. For PyTorch's attention also `index`, the tables flat, and `mask`
    [rows, 1, 1, most * block_tokens], true where a position belongs to the sequence; None where native code attends."""

    tables: torch.Tensor
    lengths: torch.Tensor
    index: torch.Tensor | None
    mask: torch.Tensor | None

    @classmethod
    def of(cls, arena: KvArena, tables: torch.Tensor, lengths: torch.Tensor) -> Decodes:
        if cpu_attention.can_decode(arena):
            return cls(tables, lengths, None, None)
        positions = torch.arange(tables.shape[1] * arena.block_tokens, device=tables.device)
        return cls(tables, lengths, tables.long().view(-1), positions < lengths.view(-1, 1, 1, 1))


@dataclass(frozen=True, slots=True)
class StepLayout:
    """Where the rows of an iteration lie. `slots` [rows]: arena position of each. The rows of `decodes` come first, then
    those of the `chunks`; the model may be given more, which are nobody's."""

    arena: KvArena
    slots: torch.Tensor
    decodes: Decodes | None
    chunks: tuple[PromptChunk, ...]


_layout: StepLayout | None = None  # of the iteration under way; a process has one lane of iterations


def use_layout(layout: StepLayout | None) -> None:
    """The layout for the calls that follow."""
    global _layout
    _layout = layout


def paged_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Transformers' attention interface. `query` [1, heads, rows, head_dim], `key` and `value` [1, kv_heads, rows,
    head_dim]; answers [1, rows, heads, head_dim]."""
    layout = _layout
    assert layout is not None, "attention was called outside of an iteration"
    layer = module.layer_idx
    assert isinstance(layer, int)
    real = len(layout.slots)
    layout.arena.flat_keys[layer].index_copy_(1, layout.slots, key[0, :, :real])
    layout.arena.flat_values[layer].index_copy_(1, layout.slots, value[0, :, :real])
    return attend(layout, layer, query[0], key[0], value[0], scaling).unsqueeze(0), None


def attend(
    layout: StepLayout,
    layer: int,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scaling: float | None = None,
) -> torch.Tensor:
    """Attention of an iteration whose keys and values are in the arena already. `query` [heads, rows, head_dim], `key` and
    `value` [kv_heads, rows, head_dim]; answers [rows, heads, head_dim]."""
    decodes = layout.decodes
    heads, rows, head_dim = query.shape
    real = len(layout.slots)
    if decodes is not None and not layout.chunks and real == rows:
        return _decode(layout.arena, decodes, layer, query, scaling)
    keys, values = layout.arena.flat_keys[layer], layout.arena.flat_values[layer]
    out = torch.empty((rows, heads, head_dim), dtype=query.dtype, device=query.device)
    out[real:] = 0
    if decodes is not None:
        count = len(decodes.lengths)
        out[:count] = _decode(layout.arena, decodes, layer, query[:, :count], scaling)
    for chunk in layout.chunks:
        last = chunk.first + chunk.tokens
        if chunk.mask is None:
            chunk_keys, chunk_values = key[:, chunk.first : last], value[:, chunk.first : last]
        else:
            chunk_keys, chunk_values = keys.index_select(1, chunk.slots), values.index_select(1, chunk.slots)
        attended = scaled_dot_product_attention(
            query[None, :, chunk.first : last],
            chunk_keys[None],
            chunk_values[None],
            attn_mask=chunk.mask,
            is_causal=chunk.mask is None,
            scale=scaling,
            enable_gqa=True,
        )
        out[chunk.first : last] = attended[0].transpose(0, 1)
    return out


def split_heads(qkv: torch.Tensor, heads: int, kv_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows [rows, (heads + 2 kv_heads) head_dim] of a joined product as what `attend` takes; views."""
    split = qkv.view(len(qkv), heads + 2 * kv_heads, -1).transpose(0, 1)
    return split[:heads], split[heads : heads + kv_heads], split[heads + kv_heads :]


def _decode(arena: KvArena, decodes: Decodes, layer: int, query: torch.Tensor, scaling: float | None) -> torch.Tensor:
    """One query a sequence, [heads, sequences, head_dim] -> [sequences, heads, head_dim]."""
    heads, count, head_dim = query.shape
    if decodes.index is None:
        scale = head_dim**-0.5 if scaling is None else scaling
        rows = query.transpose(0, 1)
        return cpu_attention.decode(arena, layer, rows, decodes.tables, decodes.lengths, scale)
    # The query heads that share a head of keys stand as its rows, so keys and values are read once for all of them.
    kv_heads = arena.keys.shape[1]
    shape = (kv_heads, count, decodes.tables.shape[1] * arena.block_tokens, head_dim)
    keys = arena.keys[layer].index_select(1, decodes.index).view(shape).transpose(0, 1)
    values = arena.values[layer].index_select(1, decodes.index).view(shape).transpose(0, 1)
    grouped = query.reshape(kv_heads, heads // kv_heads, count, head_dim).permute(2, 0, 1, 3)
    attended = scaled_dot_product_attention(grouped, keys, values, attn_mask=decodes.mask, scale=scaling)
    return attended.reshape(count, heads, head_dim)
