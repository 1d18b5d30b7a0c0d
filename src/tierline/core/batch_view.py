"""What a batching policy sees of an instance, and what it answers. No true output length is in here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Protocol

from msgspec import Struct


class SequenceView(Struct, frozen=True):
    """One sequence. `ready_tokens`: positions that could be computed now (an image that is not encoded yet bars those
    from its start on); `left_tokens`: positions without KV, ready or not; `blocks_needed`: KV blocks it would take to
    admit it (0 when it runs). `decoding`: one position is left and output was made. `output_tokens`: made so far.
    `has_images`: whether its prompt has any, encoded or not."""

    request_id: str
    arrived_ns: int
    priority: int
    ready_tokens: int
    left_tokens: int
    context_tokens: int
    output_tokens: int
    blocks_needed: int
    decoding: bool
    has_images: bool = False


class Decodes(Struct, frozen=True):
    """All running sequences that decode, in sum: how many, and the positions with KV before their next ones."""

    count: int
    context_tokens: int


class BatchView(Struct, frozen=True):
    """An instance before an iteration. `running` in order of admission; `waiting` are the first of the queue (priority,
    then arrival), which may be longer; it is empty where the instance may not prefill. Limits: `token_budget` positions and
    `sequence_limit` sequences an iteration. `encoding`: images that are being encoded here, or wait for that. `iterations`:
    so many have ended here so far, and took `busy_ns` in sum.

    Both are made when they are looked at, and may be looked at within `compose` only. A policy that treats all decodes
    alike need not look at `running`: `decodes` and `begun` say as much at a cost that does not grow with their number.
    """

    now_ns: int
    running: Sequence[SequenceView]
    waiting: Sequence[SequenceView]
    free_blocks: int
    token_budget: int
    sequence_limit: int
    encoding: int = 0
    iterations: int = 0
    busy_ns: int = 0
    known_begun: Sequence[SequenceView] | None = None
    known_decodes: Decodes | None = None

    @property
    def begun(self) -> Sequence[SequenceView]:
        """Those of `running` whose prompt is not done."""
        if self.known_begun is not None:
            return self.known_begun
        return tuple(each for each in self.running if not each.decoding)

    @property
    def decodes(self) -> Decodes:
        """The others of `running`, in sum."""
        if self.known_decodes is not None:
            return self.known_decodes
        contexts = [each.context_tokens for each in self.running if each.decoding]
        return Decodes(len(contexts), sum(contexts))


class Share(Struct, frozen=True):
    """So many positions of this sequence in the next iteration. A waiting one is admitted by being named."""

    request_id: str
    tokens: int


EVERY_DECODE = Share("", 1)
"""One position of each running sequence that decodes, in order of admission: the same as naming them all."""


class BatchPolicy(Protocol):
    """Composes iterations. Pure but for its own declared memory. `chunked`: a prompt may be spread over iterations.

    Where it has answered with nothing but `EVERY_DECODE`, nobody waits, or all seats are taken, or images bar all who wait,
    and no prompt could go on, it need not be asked again before that changes: a simulator leaps over such iterations.
    """

    chunked: ClassVar[bool]

    def compose(self, view: BatchView) -> tuple[Share, ...]: ...
