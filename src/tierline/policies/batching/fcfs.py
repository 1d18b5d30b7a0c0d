"""Prompts first and whole, decodes when no prompt waits: what engines did before chunked prefill."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tierline.core.batch_view import EVERY_DECODE, BatchView, SequenceView, Share


@dataclass(slots=True)
class FirstComeFirstServed:
    """Idea: whole prompts in order of arrival, alone in an iteration; decodes run when no prompt can.

    Source: vLLM before chunked prefill (0.6 and older; PagedAttention, SOSP 2023), Orca (OSDI 2022).
    Inputs: running and waiting sequences, budget, free blocks. Memory: none. Cost: one pass over prompts.
    """

    chunked: ClassVar[bool] = False

    def compose(self, view: BatchView) -> tuple[Share, ...]:
        return self._prompts(view) or ((EVERY_DECODE,) if view.decodes.count else ())

    def _prompts(self, view: BatchView) -> tuple[Share, ...]:
        budget, free, seats = view.token_budget, view.free_blocks, view.sequence_limit - len(view.running)
        shares: list[Share] = []

        def fits(sequence: SequenceView) -> bool:  # a prompt longer than the budget goes alone
            return sequence.left_tokens <= budget or not shares

        for sequence in view.begun:  # admitted, but without its last images at the time
            if sequence.ready_tokens == sequence.left_tokens and fits(sequence):
                shares.append(Share(sequence.request_id, sequence.left_tokens))
                budget -= sequence.left_tokens
        for sequence in view.waiting:
            if sequence.ready_tokens < sequence.left_tokens:
                continue  # blocking preparation: all images first; others may pass
            if seats <= 0 or sequence.blocks_needed > free or not fits(sequence):
                break
            shares.append(Share(sequence.request_id, sequence.left_tokens))
            budget, seats, free = budget - sequence.left_tokens, seats - 1, free - sequence.blocks_needed
        return tuple(shares)
