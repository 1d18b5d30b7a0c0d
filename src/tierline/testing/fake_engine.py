"""A made-up engine for tests of the instance scheduler: an arena of numbers, and a model that draws from all of them.

The KV of a position is a number made of the KV of all positions before it, its token and what its image looks like; the next
token is drawn from the KV of all positions, read through the block table as the engine knows it. So a wrong block, a stale
prefix, a missed image or a position computed too early gives another token than `Model.answer`, which knows no blocks.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from tierline.core.instance_actions import (
    Chunk,
    ImportRound,
    RunStep,
)
from tierline.core.instance_events import (
    InstanceEvent,
    RoundArrived,
    StepEnded,
)
from tierline.core.request import FinishReason, Request, Sampling
from tierline.schedulers.instance_state import InstanceLimits

VOCABULARY = 1009


def embedding(content_hash: str) -> int:
    """What an image looks like, as one number."""
    return zlib.crc32(content_hash.encode()) + 1


class Model:
    """Numbers in place of tensors. Hashes of integers are the same in every process."""

    @staticmethod
    def kv(before: Sequence[int], token: int, image: int) -> int:
        return hash((tuple(before), token, image))

    @staticmethod
    def draw(kv: Sequence[int], sampling: Sampling, number: int, end_tokens: frozenset[int]) -> int:
        """Output token `number` (from 0); no end before `min_tokens`."""
        token = hash((tuple(kv), sampling.seed, number)) % VOCABULARY
        ends = set(sampling.stop_token_ids) | (frozenset() if sampling.ignore_eos else end_tokens)
        while number < sampling.min_tokens and token in ends:
            token = (token + 1) % VOCABULARY
        return token

    @classmethod
    def answer(cls, request: Request, limits: InstanceLimits) -> tuple[tuple[int, ...], FinishReason]:
        """The whole right answer, computed without blocks, caches or moves."""
        images = {at: i for i in request.images for at in range(i.start, i.end)}
        room = min(limits.context_tokens, limits.blocks * limits.block_tokens)
        tokens, kv, made = list(request.prompt), list[int](), list[int]()
        if len(tokens) + 1 > limits.blocks * limits.block_tokens:
            return (), "error"
        while True:
            for at in range(len(kv), len(tokens)):
                image = images.get(at)
                seen = embedding(image.content_hash) + at - image.start if image else 0
                kv.append(cls.kv(kv, tokens[at], seen))
            token = cls.draw(kv, request.sampling, len(made), limits.end_tokens)
            made.append(token)
            tokens.append(token)
            sampling = request.sampling
            ends = token in sampling.stop_token_ids or (not sampling.ignore_eos and token in limits.end_tokens)
            if ends and len(made) >= sampling.min_tokens:
                return tuple(made), "stop"
            if len(made) >= sampling.max_tokens or len(tokens) >= room:
                return tuple(made), "length"


@dataclass(slots=True)
class Known:
    """A sequence as the engine knows it."""

    request: Request
    tokens: list[int]
    table: list[int] = field(default_factory=list)
    drew: bool = False  # its last chunk, here or at the peer it came from, drew a token


@dataclass(slots=True)
class Payload:
    """A message with what the engines put into it beside the event."""

    event: InstanceEvent
    kv: tuple[int, ...] = ()
    embedding: int = 0
    pixels: bool = False


class FakeEngine:
    """Carries out actions on an arena of numbers, and asserts whatever an engine relies on. A step reads and writes when it
    ends, so whoever gives its blocks or images away before is found out."""

    def __init__(self, limits: InstanceLimits, chunked: bool) -> None:
        self.limits = limits
        self.chunked = chunked
        self.arena: list[list[int | None]] = [[None] * limits.block_tokens for _ in range(limits.blocks)]
        self.has_memory = True
        self.waking = False  # its memory is asked for, and not there yet
        self.sequences: dict[str, Known] = {}
        self.embeddings: dict[str, int] = {}
        self.pictures: set[str] = set()  # images to be encoded whose pixels are here
        self.step: RunStep | None = None
        self.encoding = ""
        self._at_start: dict[str, tuple[Known, dict[str, int]]] = {}

    def start(self, step: RunStep) -> None:
        assert self.step is None, "a step is under way already"
        names = [chunk.request_id for chunk in step.chunks]
        assert names and len(set(names)) == len(names) <= self.limits.sequence_limit
        used = sum(chunk.tokens for chunk in step.chunks)
        assert used <= self.limits.token_budget or (not self.chunked and len(names) == 1)
        for chunk in step.chunks:
            self._take(chunk)
        self.step = step

    def _take(self, chunk: Chunk) -> None:
        known = self.sequences[chunk.request_id]
        if chunk.fresh:
            known.table = []
        known.table += chunk.new_blocks
        until = chunk.first + chunk.tokens
        assert chunk.tokens > 0 and until <= len(known.tokens)
        assert chunk.samples == (until == len(known.tokens))
        assert len(known.table) * self.limits.block_tokens >= until, "a chunk has no blocks"
        for image in known.request.images:
            needed = image.start < until and image.end > chunk.first
            assert not needed or image.content_hash in self.embeddings, "a position was computed before its image"
        frozen = Known(known.request, list(known.tokens), list(known.table))
        self._at_start[chunk.request_id] = (frozen, dict(self.embeddings))

    def free_memory(self) -> None:
        """Whoever reads here after a sleep is found out."""
        assert self.has_memory and not self.sequences and not self.embeddings and not self.step and not self.encoding
        self.has_memory = False
        self.arena = []

    def take_memory(self) -> None:
        assert not self.has_memory
        self.has_memory = True
        self.arena = [[None] * self.limits.block_tokens for _ in range(self.limits.blocks)]

    def writes(self) -> list[tuple[str, int]]:
        """Blocks that the step under way writes, and for whom."""
        block, found = self.limits.block_tokens, []
        for chunk in self.step.chunks if self.step else ():
            table = self._at_start[chunk.request_id][0].table
            places = range(chunk.first // block, -(-(chunk.first + chunk.tokens) // block))
            found += [(chunk.request_id, table[place]) for place in places]
        return found

    def finish(self) -> StepEnded:
        step, self.step = self.step, None
        assert step is not None
        sampled = [(chunk.request_id, self._compute(chunk)) for chunk in step.chunks]
        return StepEnded(step.step, tuple((key, token) for key, token in sampled if token is not None))

    def _compute(self, chunk: Chunk) -> int | None:
        known, embeddings = self._at_start.pop(chunk.request_id)
        if chunk.request_id in self.sequences:
            embeddings = self.embeddings
        block, until = self.limits.block_tokens, chunk.first + chunk.tokens
        images = {at: image for image in known.request.images for at in range(image.start, image.end)}
        kv = self.read(known.table, 0, chunk.first)
        for at in range(chunk.first, until):
            image = images.get(at)
            seen = embeddings[image.content_hash] + at - image.start if image else 0
            kv.append(Model.kv(kv, known.tokens[at], seen))
            self.arena[known.table[at // block]][at % block] = kv[-1]
        if not chunk.samples:
            return None
        number = len(known.tokens) - len(known.request.prompt)
        token = Model.draw(kv, known.request.sampling, number, self.limits.end_tokens)
        if chunk.request_id in self.sequences:
            self.sequences[chunk.request_id].tokens.append(token)
            self.sequences[chunk.request_id].drew = True
        return token

    def read(self, table: Sequence[int], first: int, until: int) -> list[int]:
        """KV of the positions `first..until`; `table` begins with the block of `first`."""
        block = self.limits.block_tokens
        assert first % block == 0
        found = [self.arena[table[at // block]][at % block] for at in range(until - first)]
        kv = [each for each in found if each is not None]
        assert len(kv) == len(found), "KV is read that was never written"
        return kv

    def put(self, action: ImportRound, message: Payload) -> None:
        """A round's KV goes into the arena."""
        assert isinstance(message.event, RoundArrived)
        block, known = self.limits.block_tokens, self.sequences[action.request_id]
        assert len(message.kv) == action.until - action.first and action.first % block == 0
        for offset, value in enumerate(message.kv):
            self.arena[action.blocks[offset // block]][offset % block] = value
        known.tokens = [*known.request.prompt, *message.event.made]
        known.drew = message.event.final
