"""One attempt at a request on an instance: its tokens, how far they are computed, its blocks, its images."""

from __future__ import annotations

from collections import abc
from collections.abc import Container
from dataclasses import dataclass, field
from enum import IntEnum

from tierline.core.batch_view import SequenceView
from tierline.core.request import ImageSpan, Request
from tierline.schedulers.kv_blocks import ROOT_KEY, BlockKeys, Key, block_key


class Phase(IntEnum):
    WAITING = 0  # in the queue, without blocks
    RUNNING = 1  # may be in any iteration
    HELD = 2  # its prompt is done, and decoding is not allowed here: it waits to be moved
    LEAVING = 3  # its last KV is under way to a peer; it computes nothing
    ARRIVING = 4  # its KV is coming from a peer


class HashedKeys:
    """A block is known by a hash of its content (`block_key`)."""

    def extend(
        self, keys: list[Key], request: Request, tokens: abc.Sequence[int], blocks: int, block_tokens: int
    ) -> None:
        for number in range(len(keys), blocks):
            first = number * block_tokens
            parent = keys[-1] if keys else ROOT_KEY
            assert isinstance(parent, bytes)
            keys.append(block_key(parent, tokens[first : first + block_tokens], request.images, first))


HASHED_KEYS = HashedKeys()


@dataclass(slots=True, eq=False)
class Sequence:
    """`tokens` are prompt and output; the KV of the first `computed` is in `blocks`. Exactly the images in `using` are held
    in the pool for it. Of its output the serving scheduler knows the first `told`.

    In lockstep (`schedulers/lockstep.py`) `tokens` and `computed` stand as they were after iteration `locked` of it, and what
    has been made since follows from how many there have been; -1 = not in lockstep."""

    request: Request
    phase: Phase = Phase.WAITING
    block_keys: BlockKeys = HASHED_KEYS
    tokens: list[int] = field(default_factory=list)
    computed: int = 0
    in_step: int = 0  # positions of the iteration under way
    blocks: list[int] = field(default_factory=list)
    told_blocks: int = 0  # so many of them the engine knows
    fresh: bool = True  # the engine's table has to begin anew
    registered: int = 0  # so many full blocks the prefix pool knows
    keys: list[Key] = field(default_factory=list)
    cached_tokens: int = 0
    using: set[str] = field(default_factory=set)
    told: int = 0
    seat: int = 0  # grows with every admission, so it orders those that run
    locked: int = -1
    grow_at: int = 0  # of the lockstep's iterations, the first for which it has no block
    full_at: int = -1  # of the lockstep's iterations, the one with which its answer is as long as it may be
    asked_at: int = -1  # how many blocks were forgotten when its images were last asked for
    request_id: str = field(init=False)

    def __post_init__(self) -> None:
        self.request_id = self.request.request_id
        if not self.tokens:
            self.tokens = [*self.request.prompt, *self.request.made]
        self.told = len(self.request.made)

    @property
    def made(self) -> tuple[int, ...]:
        """All output tokens, also those of earlier attempts."""
        return tuple(self.tokens[len(self.request.prompt) :])

    @property
    def output_tokens(self) -> int:
        return len(self.tokens) - len(self.request.prompt)

    @property
    def is_decoding(self) -> bool:
        return self.output_tokens > 0 and self.computed == len(self.tokens) - 1

    def order(self) -> tuple[int, int, str]:
        """Priority, then arrival."""
        return (-self.request.priority, self.request.arrived_ns, self.request_id)

    def images_after(self, position: int) -> list[ImageSpan]:
        """Images whose embeddings are needed when computing from `position` on."""
        return [image for image in self.request.images if image.end > position]

    def ready_until(self, position: int, pool: Container[str]) -> int:
        """Up to where positions from `position` on can be computed: the first image without embeddings bars the way."""
        for image in self.request.images:
            if image.end > position and image.content_hash not in pool:
                return max(image.start, position)
        return len(self.tokens)

    def keys_until(self, blocks: int, block_tokens: int) -> list[Key]:
        """Keys of the first `blocks` blocks, which must be full. Kept, since tokens never change."""
        if len(self.keys) < blocks:
            self.block_keys.extend(self.keys, self.request, self.tokens, blocks, block_tokens)
        return self.keys[:blocks]

    def view(self, pool: Container[str], start: int, blocks_needed: int) -> SequenceView:
        """`start`: where computing would go on."""
        request, left = self.request, len(self.tokens) - start
        return SequenceView(
            self.request_id,
            request.arrived_ns,
            request.priority,
            self.ready_until(start, pool) - start if request.images else left,
            left,
            start,
            self.output_tokens,
            blocks_needed,
            self.is_decoding,
            bool(request.images),
        )
