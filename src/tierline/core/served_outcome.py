"""What became of one request of a `ServedTrace`, whoever answered it: a simulator, paced instances, a live server."""

from __future__ import annotations

from dataclasses import dataclass

FINISHED = "finished"
UNFINISHED = "unfinished"
"""Still waiting or under way when the run was ended."""


@dataclass(frozen=True, slots=True)
class ServedOutcome:
    """Times on one clock, in nanoseconds; −1 = never. `arrived_ns` is when the trace wanted it to arrive, so that a late
    sender counts as waiting. `finished_ns`: the last token, or the error. `prompt_tokens` include
    those of `images`. `outcome`: FINISHED, or the kind of error as one word (`refused`, `timeout`, `lost`, …). `stream`:
    which client or trace it came from."""

    arrived_ns: int
    first_token_ns: int = -1
    finished_ns: int = -1
    output_tokens: int = 0
    prompt_tokens: int = 0
    images: int = 0
    outcome: str = FINISHED
    stream: str = ""

    @property
    def ok(self) -> bool:
        return self.outcome == FINISHED
