"""The KV arena: one place for the keys and values of all sequences of an instance, in blocks."""

from __future__ import annotations

import math
import mmap
from collections.abc import Sequence

import torch


class KvArena:
    """Keys and values, each [layers, kv_heads, blocks, block_tokens, head_dim]: a head's part of a block lies in one piece,
    so that attention reads it as it is. Which block is whose is the scheduler's business (`schedulers/kv_blocks.py`). The
    tensors are others after `free` and `restore`: nobody keeps them from one iteration to the next."""

    def __init__(
        self,
        layers: int,
        blocks: int,
        block_tokens: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.block_tokens = block_tokens
        self._shape = (layers, kv_heads, blocks, block_tokens, head_dim)
        self._dtype, self._device = dtype, device
        self.restore()

    def restore(self) -> None:
        """Have memory, all zeros."""
        self.keys, self.values = (_zeros(self._shape, self._dtype, self._device) for _ in range(2))
        # By position in the arena, block * block_tokens + offset: [layers, kv_heads, positions, head_dim]. Views.
        self.flat_keys, self.flat_values = self.keys.flatten(2, 3), self.values.flatten(2, 3)

    def free(self) -> None:
        """Give the memory up, until `restore`: there are no blocks."""
        layers, kv_heads, _, block_tokens, head_dim = self._shape
        nothing = torch.empty((layers, kv_heads, 0, block_tokens, head_dim), dtype=self._dtype, device=self._device)
        self.keys = self.values = nothing
        self.flat_keys = self.flat_values = nothing.flatten(2, 3)

    @staticmethod
    def bytes_per_block(layers: int, block_tokens: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> int:
        return 2 * layers * block_tokens * kv_heads * head_dim * dtype.itemsize

    def export(self, blocks: Sequence[int]) -> torch.Tensor:
        """A copy of these blocks in host memory: uint8, flat; `load` of an arena of the same shape takes it."""
        index = torch.tensor(blocks, dtype=torch.long, device=self.keys.device)
        both = torch.stack((self.keys.index_select(2, index), self.values.index_select(2, index)))
        return both.view(torch.uint8).reshape(-1).cpu()

    def load(self, blocks: Sequence[int], payload: torch.Tensor) -> None:
        """Put what `export` made into these blocks. `payload`: uint8, flat; raises `ValueError` where sizes differ."""
        layers, kv_heads, _, block_tokens, head_dim = self.keys.shape
        shape = (2, layers, kv_heads, len(blocks), block_tokens, head_dim)
        expected = 2 * self.keys[:, :, :1].numel() * len(blocks) * self.keys.element_size()
        if payload.numel() != expected:
            raise ValueError(f"{payload.numel()} bytes of KV arrived for {len(blocks)} blocks, which take {expected}")
        index = torch.tensor(blocks, dtype=torch.long, device=self.keys.device)
        both = payload.view(self.keys.dtype).view(shape).to(self.keys.device)
        self.keys.index_copy_(2, index, both[0])
        self.values.index_copy_(2, index, both[1])


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """On a CPU pages that nothing has been written to yet take no memory: PyTorch would write zeros to all of them."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, max(1, math.prod(shape) * dtype.itemsize), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    return torch.frombuffer(memory, dtype=dtype, count=math.prod(shape)).view(*shape)
