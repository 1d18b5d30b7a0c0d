"""Chunks no larger than the running decodes can bear; prompts by deadline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tierline.core.batch_view import EVERY_DECODE, BatchView, SequenceView, Share
from tierline.core.slo import Slo
from tierline.core.stage_times import BatchShape, StageTimes
from tierline.perf.serving_demand import StageRates
from tierline.perf.stage_time_online import OnlineTimes
from tierline.policies.deadlines import place

DECODES_STEP = (
    4  # decodes, context and chunk positions are rounded up to these, so that few questions are asked of `times`
)
CONTEXT_STEP = 8192
CACHED_STEP = 2048
TOKENS_STEP = 16


@dataclass(slots=True)
class SloChunk:
    """Idea: every decode goes on in every iteration, and prompts get as many tokens beside them as keep the predicted
    iteration within the TPOT promised; the earliest deadline first, those that will be late anyway last, until they come
    again.

    Source: Sarathi-Serve (OSDI 2024) for chunks; FlowPrefill (2602.16603) for deadlines and slack.
    Inputs: begun and waiting prompts, decodes in sum, budget, free blocks, predicted times. Memory: answers of `times`, until
    these are fitted anew. Cost: one sort of the begun and the viewed waiting.
    `tpot_share`: of the TPOT promised an iteration may take so much. `least_tokens`: so many prompt tokens always go on, also
    when the decodes alone take too long. `chunk_tokens`: the chunk beside decodes where there are no `times`.
    """

    chunked: ClassVar[bool] = True
    times: StageTimes | None = None
    slo: Slo = field(default_factory=Slo)
    tpot_share: float = 0.95
    least_tokens: int = 64
    chunk_tokens: int = 512
    patience_ns: int = 10_000_000_000
    priority_ns: int = 1_000_000_000
    by_deadline: bool = True
    _rates: StageRates | None = None
    _allowed: dict[tuple[int, int, int, int], int] = field(default_factory=dict)
    _version: int = 0  # of `times`, that the above are from

    def compose(self, view: BatchView) -> tuple[Share, ...]:
        decodes, begun = view.decodes, view.begun
        shares: list[Share] = [EVERY_DECODE] if decodes.count else []
        if decodes.count > view.token_budget:
            return tuple([Share(each.request_id, 1) for each in view.running if each.decoding][: view.token_budget])
        if not begun and not view.waiting:
            return tuple(shares)
        waiting = {id(each) for each in view.waiting}
        prompts = [each for each in (*begun, *view.waiting) if each.ready_tokens]
        if self.by_deadline:
            prompts.sort(key=lambda each: self._place(each, view.now_ns))
        if not prompts:
            return tuple(shares)
        room = view.token_budget - decodes.count
        budget = min(room, self._bearable(decodes.count, decodes.context_tokens, prompts[0].context_tokens, room))
        seats, free = view.sequence_limit - decodes.count - len(begun), view.free_blocks
        for sequence in prompts:
            if budget <= 0:
                break
            if id(sequence) in waiting:
                if seats <= 0 or sequence.blocks_needed > free:
                    seats = 0  # nobody who waits passes one that does not fit; who has begun goes on
                    continue
                seats, free = seats - 1, free - sequence.blocks_needed
            tokens = min(sequence.ready_tokens, budget)
            shares.append(Share(sequence.request_id, tokens))
            budget -= tokens
        return tuple(shares)

    def _place(self, sequence: SequenceView, now_ns: int) -> tuple[float, float]:
        if self._rates is None:
            self._rates = StageRates.of(self.times) if self.times is not None else StageRates()
        positions = sequence.context_tokens + sequence.left_tokens
        deadline_ns = sequence.arrived_ns + self.slo.ttft_of(positions, int(sequence.has_images))
        service_s = self._rates.prefill_token_s * sequence.left_tokens
        return place(
            now_ns,
            sequence.arrived_ns,
            deadline_ns,
            service_s,
            self.patience_ns,
            sequence.priority,
            self.priority_ns,
        )

    def _bearable(self, decodes: int, context_tokens: int, cached_tokens: int, most: int) -> int:
        """Prompt tokens that keep the iteration within the TPOT promised: the largest such multiple of `TOKENS_STEP`, at
        least `least_tokens`."""
        if not decodes:
            return most
        if self.times is None:
            return self.chunk_tokens
        if isinstance(self.times, OnlineTimes) and self.times.version != self._version:
            self._version, self._allowed, self._rates = self.times.version, {}, None
        key = (-(-decodes // DECODES_STEP), -(-context_tokens // CONTEXT_STEP), -(-cached_tokens // CACHED_STEP), most)
        known = self._allowed.get(key)
        if known is None:
            known = self._allowed[key] = self._search(*key)
        return known

    def _search(self, decodes: int, context: int, cached: int, most: int) -> int:
        assert self.times is not None
        bound_s = self.tpot_share * self.slo.tpot_ns / 1e9
        low, high = 0, most // TOKENS_STEP
        while low < high:
            middle = (low + high + 1) // 2
            shape = BatchShape(
                ((middle * TOKENS_STEP, cached * CACHED_STEP),), decodes * DECODES_STEP, context * CONTEXT_STEP
            )
            if self.times.iteration_s(shape) <= bound_s:
                low = middle
            else:
                high = middle - 1
        return max(low * TOKENS_STEP, self.least_tokens)
