"""Which images' embeddings an instance has: least recently used first to go, what is in use stays. Bookkeeping only."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator


class EmbeddingPool:
    """Content hash of an image -> size of its embeddings, within `budget_bytes`; what is in use may exceed it."""

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._size: OrderedDict[str, int] = OrderedDict()
        self._uses: Counter[str] = Counter()
        self.used_bytes = 0

    def __contains__(self, content_hash: object) -> bool:
        return content_hash in self._size

    def __iter__(self) -> Iterator[str]:
        return iter(self._size)

    def __len__(self) -> int:
        return len(self._size)

    def put(self, content_hash: str, size_bytes: int, uses: int = 0) -> tuple[str, ...]:
        """Add an image that `uses` sequences wait for; returns the hashes of those given up for it."""
        if content_hash not in self._size:
            self._size[content_hash] = size_bytes
            self.used_bytes += size_bytes
        self._size.move_to_end(content_hash)
        self._uses[content_hash] += uses
        return self._shrink()

    def use(self, content_hash: str) -> None:
        """A sequence needs the image until it says `done`."""
        self._size.move_to_end(content_hash)
        self._uses[content_hash] += 1

    def done(self, content_hash: str) -> tuple[str, ...]:
        """A sequence needs the image no more; returns the hashes given up."""
        self._uses[content_hash] -= 1
        assert self._uses[content_hash] >= 0, f"image {content_hash} was given back once too often"
        return self._shrink()

    def forget_all(self) -> tuple[str, ...]:
        """No image is in use, and none is kept; returns the hashes given up."""
        assert not any(self._uses.values()), "an image is in use"
        gone = tuple(self._size)
        self._size.clear()
        self._uses.clear()
        self.used_bytes = 0
        return gone

    def _shrink(self) -> tuple[str, ...]:
        gone: list[str] = []
        if self.used_bytes > self._budget_bytes:
            for content_hash, size in self._size.items():
                if self.used_bytes <= self._budget_bytes:
                    break
                if not self._uses[content_hash]:
                    self.used_bytes -= size
                    gone.append(content_hash)
            for content_hash in gone:
                del self._size[content_hash], self._uses[content_hash]
        return tuple(gone)
