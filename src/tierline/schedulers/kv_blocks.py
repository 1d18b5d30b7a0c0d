"""Who owns which KV block of an instance, and which blocks hold a prefix that others can use: the pool of merged sequences.

Bookkeeping only; the tensors are the engine's. A block is free, or held by `references` sequences. One that nobody holds
but whose content is known by its key stays usable until its place is needed (least recently used first).
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from tierline.core.request import ImageSpan

ROOT_KEY = b""


def block_key(parent: bytes, tokens: Sequence[int], images: Iterable[ImageSpan], first: int) -> bytes:
    """What a full block is known by: its parent's key, its tokens, and the images whose placeholders lie in it, with
    where they begin relative to the block (ElasticMM's unified sequence; block hashes as in vLLM's prefix cache).

    `first`: position of the block's first token. 16 bytes.
    """
    digest = hashlib.blake2b(parent, digest_size=16)
    digest.update(array("q", tokens).tobytes())
    for image in images:
        if image.start < first + len(tokens) and image.end > first:
            digest.update(f"{image.content_hash}:{image.start - first};".encode())
    return digest.digest()


class KvBlocks:
    """`total` blocks of `block_tokens` positions each. With `caching` False no prefix is ever found."""

    def __init__(self, total: int, block_tokens: int, *, caching: bool = True) -> None:
        self.total = total
        self.block_tokens = block_tokens
        self._caching = caching
        self._references = [0] * total
        self._key_of: list[bytes | None] = [None] * total
        self._block_of: dict[bytes, int] = {}
        self._free = list(range(total - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # nobody holds them, their content is known; oldest first

    @property
    def free(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free) + len(self._idle)

    def needed(self, positions: int) -> int:
        return -(-positions // self.block_tokens)

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """Blocks of the longest known prefix of `keys`."""
        found: list[int] = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def held(self, blocks: Iterable[int]) -> int:
        """How many of `blocks` somebody holds: to hold them once more takes nothing of what is free."""
        return sum(self._references[block] > 0 for block in blocks)

    def retain(self, blocks: Iterable[int]) -> None:
        """Hold blocks that `match` has found."""
        for block in blocks:
            if not self._references[block]:
                del self._idle[block]
            self._references[block] += 1

    def take(self, count: int) -> list[int]:
        """`count` blocks without content; [] and no change when there are not so many."""
        if count > self.free:
            return []
        taken: list[int] = []
        for _ in range(count):
            if self._free:
                block = self._free.pop()
            else:
                block, _ = self._idle.popitem(last=False)
                self._forget(block)
            self._references[block] = 1
            taken.append(block)
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks; the ends of sequences go before their beginnings when room is needed."""
        for block in reversed(blocks):
            self._references[block] -= 1
            assert self._references[block] >= 0, f"block {block} was released once too often"
            if self._references[block]:
                continue
            if self._key_of[block] is None:
                self._free.append(block)
            else:
                self._idle[block] = None

    def register(self, block: int, key: bytes) -> None:
        """The block, held by the caller, is full and its content is known by `key`. A second block of the same content
        stays unknown."""
        if self._caching and self._key_of[block] is None and key not in self._block_of:
            self._key_of[block] = key
            self._block_of[key] = block

    def _forget(self, block: int) -> None:
        key = self._key_of[block]
        if key is not None:
            del self._block_of[key]
            self._key_of[block] = None
