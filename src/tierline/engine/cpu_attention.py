"""Attention of decoding sequences by native code, where the processor has AVX-512 with bf16 and the native part was built.

It reads the arena's blocks in place; PyTorch's own attention needs them gathered first, which takes longer than attending.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch

from tierline.engine.arena import KvArena


def _module() -> Any:
    try:
        return importlib.import_module("tierline._attention")
    except ImportError:  # not built here, or PyTorch's OpenMP has other names: PyTorch's attention does it
        return None


native = _module()  # tierline._attention; None where it cannot be had


def can_decode(arena: KvArena) -> bool:
    """Whether `decode` may be called with this arena."""
    if native is None or arena.keys.dtype is not torch.bfloat16 or arena.keys.device.type != "cpu":
        return False
    return bool(native.can_decode(arena.keys.shape[-1], arena.block_tokens))


def decode(
    arena: KvArena, layer: int, query: torch.Tensor, tables: torch.Tensor, lengths: torch.Tensor, scale: float
) -> torch.Tensor:
    """`query` [sequences, heads, head_dim]; `tables` [sequences, most] and `lengths` [sequences] of int32, contiguous, each
    length at least 1 and within its table. Answers [sequences, heads, head_dim]."""
    kv_heads, blocks, block_tokens, head_dim = arena.keys.shape[1:]
    sequences, heads, _ = query.shape
    if query.stride()[1:] != (head_dim, 1):
        query = query.contiguous()
    out = torch.empty((sequences, heads, head_dim), dtype=query.dtype)
    native.decode(
        query.data_ptr(),
        arena.keys[layer].data_ptr(),
        arena.values[layer].data_ptr(),
        out.data_ptr(),
        tables.data_ptr(),
        lengths.data_ptr(),
        query.stride(0),
        sequences,
        kv_heads,
        heads // kv_heads,
        head_dim,
        blocks,
        block_tokens,
        tables.shape[1],
        scale,
    )
    return out
