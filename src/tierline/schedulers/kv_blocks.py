"""Who owns which KV block of an instance, and which blocks hold a prefix that others can use: the pool of merged sequences.

Bookkeeping only; the tensors are the engine's. A block is free, or held by `references` sequences. One that nobody holds
but whose content is known by its key stays usable until its place is needed (least recently used first).
What a block is known by is a hash of its content; a simulator, whose tokens mean nothing, names contents instead.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from collections.abc import Collection, Iterable, Sequence
from typing import Protocol

from tierline.core.request import ImageSpan, Request

ROOT_KEY = b""
Key = bytes | int


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


class BlockKeys(Protocol):
    """Says what blocks are known by. Two blocks have the same key exactly when they and all before them hold the same."""

    def extend(self, keys: list[Key], request: Request, tokens: Sequence[int], blocks: int, block_tokens: int) -> None:
        """Append to `keys`, which are those of the first blocks of a sequence, until there are `blocks`, all full."""
        ...


class KvBlocks:
    """`total` blocks of `block_tokens` positions each. With `caching` False no prefix is ever found."""

    def __init__(self, total: int, block_tokens: int, *, caching: bool = True) -> None:
        self.total = total
        self.block_tokens = block_tokens
        self._caching = caching
        self._references = [0] * total
        self._key_of: list[Key | None] = [None] * total
        self._block_of: dict[Key, int] = {}
        self._free = list(range(total - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()  # nobody holds them, their content is known; oldest first
        self.forgotten = 0  # contents so far that can no longer be found
        self.known = 0  # contents so far that could be found

    @property
    def free(self) -> int:
        """Blocks that can be taken now."""
        return len(self._free) + len(self._idle)

    @property
    def blank(self) -> int:
        """Those of them whose content nobody can find: taking them forgets nothing."""
        return len(self._free)

    def needed(self, positions: int) -> int:
        return -(-positions // self.block_tokens)

    def match(self, keys: Iterable[Key]) -> list[int]:
        """Blocks of the longest known prefix of `keys`."""
        found: list[int] = []
        block_of = self._block_of
        for key in keys:
            block = block_of.get(key)
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
        if count <= 0 or count > self.free:
            return []
        free, idle, references = self._free, self._idle, self._references
        taken = free[: -count - 1 : -1]
        del free[len(free) - len(taken) :]
        if len(taken) < count:
            oldest = [idle.popitem(last=False)[0] for _ in range(count - len(taken))]
            self._forget(oldest)
            taken += oldest
        for block in taken:
            references[block] = 1
        return taken

    def release(self, blocks: Sequence[int]) -> None:
        """Let go of blocks; the ends of sequences go before their beginnings when room is needed."""
        references, key_of, idle, free = self._references, self._key_of, self._idle, self._free
        for block in reversed(blocks):
            left = references[block] - 1
            assert left >= 0, f"block {block} was released once too often"
            references[block] = left
            if left:
                continue
            if key_of[block] is None:
                free.append(block)
            else:
                idle[block] = None

    def register(self, block: int, key: Key) -> None:
        """The block, held by the caller, is full and its content is known by `key`. A second block of the same content
        stays unknown."""
        self.register_all((block,), (key,))

    def register_all(self, blocks: Iterable[int], keys: Iterable[Key]) -> None:
        """`register` each block by its key."""
        if not self._caching:
            return
        key_of, block_of = self._key_of, self._block_of
        before = len(block_of)
        for block, key in zip(blocks, keys, strict=True):
            if key_of[block] is None and key not in block_of:
                key_of[block] = key
                block_of[key] = block
        self.known += len(block_of) - before

    def forget_all(self) -> None:
        """Nobody holds a block, and no content can be found any more."""
        assert self.free == self.total, "a block is held"
        self._forget(self._idle)
        self._free = list(range(self.total - 1, -1, -1))
        self._idle.clear()

    def _forget(self, blocks: Collection[int]) -> None:
        """Of those that nobody holds."""
        key_of, block_of = self._key_of, self._block_of
        for block in blocks:
            key = key_of[block]
            assert key is not None, f"block {block} is idle and its content is not known"
            del block_of[key]
            key_of[block] = None
        self.forgotten += len(blocks)
