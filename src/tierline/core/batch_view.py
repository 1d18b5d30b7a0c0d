"""What a batching policy sees of an instance, and what it answers. No true output length is in here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol


@dataclass(frozen=True, slots=True)
class SequenceView:
    """One sequence. `ready_tokens`: positions that could be computed now (an image that is not encoded yet bars those
    from its start on); `left_tokens`: positions without KV, ready or not; `blocks_needed`: KV blocks it would take to
    admit it (0 when it runs). `decoding`: one position is left and output was made. `output_tokens`: made so far."""

    request_id: str
    arrived_ns: int
    priority: int
    ready_tokens: int
    left_tokens: int
    context_tokens: int
    output_tokens: int
    blocks_needed: int
    decoding: bool


@dataclass(frozen=True, slots=True)
class BatchView:
    """An instance before an iteration. `running` in order of admission; `waiting` are the first of the queue (priority,
    then arrival), which may be longer; it is empty where the instance may not prefill. Limits: `token_budget` positions and
    `sequence_limit` sequences an iteration."""

    now_ns: int
    running: tuple[SequenceView, ...]
    waiting: tuple[SequenceView, ...]
    free_blocks: int
    token_budget: int
    sequence_limit: int


@dataclass(frozen=True, slots=True)
class Share:
    """So many positions of this sequence in the next iteration. A waiting one is admitted by being named."""

    request_id: str
    tokens: int


class BatchPolicy(Protocol):
    """Composes iterations. Pure but for its own declared memory. `chunked`: a prompt may be spread over iterations."""

    chunked: ClassVar[bool]

    def compose(self, view: BatchView) -> tuple[Share, ...]: ...
