"""Stall-free batching: decodes first, prompts in chunks beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tierline.core.batch_view import BatchView, Share


@dataclass(slots=True)
class Sarathi:
    """Idea: no decode ever waits for a prompt; what is left of the token budget goes to prompts, chunk by chunk.

    Source: Sarathi-Serve (OSDI 2024), section 4.2.
    Inputs: running and waiting sequences, budget, free blocks. Memory: none. Cost: one pass.
    `chunk_tokens`: a smaller budget than the instance's own (0 = that one).
    """

    chunked: ClassVar[bool] = True
    chunk_tokens: int = 0

    def compose(self, view: BatchView) -> tuple[Share, ...]:
        budget = min(self.chunk_tokens or view.token_budget, view.token_budget)
        seats, free = view.sequence_limit, view.free_blocks
        shares: list[Share] = []
        for decodes in (True, False):
            for sequence in view.running:
                if sequence.decoding is not decodes or not sequence.ready_tokens or not budget:
                    continue
                tokens = min(sequence.ready_tokens, budget)
                shares.append(Share(sequence.request_id, tokens))
                budget -= tokens
        seats -= len(view.running)
        for sequence in view.waiting:
            if budget <= 0 or seats <= 0 or sequence.blocks_needed > free:
                break  # first come, first served: nobody passes one that does not fit
            if not sequence.ready_tokens:
                continue  # its first image is not encoded yet; it holds up nobody
            tokens = min(sequence.ready_tokens, budget)
            shares.append(Share(sequence.request_id, tokens))
            budget, seats, free = budget - tokens, seats - 1, free - sequence.blocks_needed
        return tuple(shares)
