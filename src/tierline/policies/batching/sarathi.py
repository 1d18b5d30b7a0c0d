"""Stall-free batching: decodes first, prompts in chunks beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tierline.core.batch_view import EVERY_DECODE, BatchView, Share


@dataclass(slots=True)
class Sarathi:
    """Idea: no decode ever waits for a prompt; what is left of the token budget goes to prompts, chunk by chunk.

    Source: Sarathi-Serve (OSDI 2024), section 4.2.
    Inputs: running and waiting sequences, budget, free blocks. Memory: none. Cost: one pass over prompts.
    `chunk_tokens`: a smaller budget than the instance's own (0 = that one).
    """

    chunked: ClassVar[bool] = True
    chunk_tokens: int = 0

    def compose(self, view: BatchView) -> tuple[Share, ...]:
        budget = min(self.chunk_tokens or view.token_budget, view.token_budget)
        seats, free, decodes = view.sequence_limit - len(view.running), view.free_blocks, view.decodes.count
        shares: list[Share] = []
        if 0 < decodes <= budget:
            shares.append(EVERY_DECODE)
        elif decodes:
            shares += [Share(each.request_id, 1) for each in view.running if each.decoding][:budget]
        budget -= min(decodes, budget)
        for sequence in view.begun:
            tokens = min(sequence.ready_tokens, budget)
            if tokens:
                shares.append(Share(sequence.request_id, tokens))
                budget -= tokens
        for sequence in view.waiting:
            if budget <= 0 or seats <= 0 or sequence.blocks_needed > free:
                break  # first come, first served: nobody passes one that does not fit
            if not sequence.ready_tokens:
                continue  # its first image is not encoded yet; it holds up nobody
            tokens = min(sequence.ready_tokens, budget)
            shares.append(Share(sequence.request_id, tokens))
            budget, seats, free = budget - tokens, seats - 1, free - sequence.blocks_needed
        return tuple(shares)
