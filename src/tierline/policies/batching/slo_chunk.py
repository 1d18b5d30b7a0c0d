"""Chunks no larger than the running decodes can bear; prompts by deadline."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tierline.core.batch_view import EVERY_DECODE, BatchView, Decodes, SequenceView, Share
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
BOUND_STEP_S = 1e-3
BIG = 1 << 30


@dataclass(slots=True)
class SloChunk:
    """Idea: every decode goes on in every iteration, and prompts get as many tokens beside them as keep the predicted
    iteration within the TPOT promised, on average: what iterations were shorter pays for a longer one, so that a prompt that
    comes to a quiet instance is done at once. The earliest deadline first, those that will be late anyway last, until
    they come again.

    Source: Sarathi-Serve (OSDI 2024) for chunks; FlowPrefill (2602.16603) for deadlines and slack.
    Inputs: begun and waiting prompts, decodes in sum, budget, free blocks, how long iterations took, predicted times. Memory:
    answers of `times`, until these are fitted anew; the debt. Cost: one sort of the begun and the viewed waiting.
    `tpot_share`: of the TPOT promised an iteration may take so much. `credit_s`: by so many seconds iterations may be longer
    in sum before shorter ones have made up for it. `least_tokens`: so many prompt tokens always go on, also
    when the decodes alone take too long. `alone_tokens`: the chunk where nobody decodes; the longer it is, the longer an
    urgent prompt that comes now waits. `chunk_tokens`: the chunk beside decodes where there are no `times`. `beside`: so
    many times longer is an iteration beside one image that is encoded here, or beside more (`Overlap.slowdown` of a large
    chunk; of the one image, half).
    """

    chunked: ClassVar[bool] = True
    times: StageTimes | None = None
    slo: Slo = field(default_factory=Slo)
    tpot_share: float = 0.9
    credit_s: float = 0.11
    least_tokens: int = 64
    alone_tokens: int = 768
    chunk_tokens: int = 512
    patience_ns: int = 10_000_000_000
    priority_ns: int = 1_000_000_000
    by_deadline: bool = True
    beside: tuple[float, float] = (1.4, 1.8)
    _rates: StageRates | None = None
    _allowed: dict[tuple[int, int, int, int, int], int] = field(default_factory=dict)
    _version: int = 0  # of `times`, that the above are from
    _debt_s: float = 0.0  # by so much iterations were longer than the share of the TPOT, less what others were shorter,
    _iterations: int = 0  # until so many had ended,
    _busy_ns: int = 0  # and had taken so long

    def compose(self, view: BatchView) -> tuple[Share, ...]:
        decodes, begun = view.decodes, view.begun
        shares: list[Share] = [EVERY_DECODE] if decodes.count else []
        if decodes.count > view.token_budget:
            return tuple([Share(each.request_id, 1) for each in view.running if each.decoding][: view.token_budget])
        if not begun and not view.waiting:
            return tuple(shares)
        comes = tuple(view.waiting)
        waiting = {id(each) for each in comes}
        prompts = [each for each in (*begun, *comes) if each.ready_tokens]
        if self.by_deadline:
            prompts.sort(key=lambda each: self._place(each, view.now_ns))
        if not prompts:
            return tuple(shares)
        seats, free = view.sequence_limit - decodes.count - len(begun), view.free_blocks
        room = view.token_budget - decodes.count
        self._account(view)
        if decodes.count:
            slow = self.beside[min(1, view.encoding - 1)] if view.encoding else 1.0
            budget = self._bearable(decodes, prompts[0].context_tokens, room, slow)
        else:
            budget = min(room, self._alone(view.now_ns, prompts[0]))
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

    def _account(self, view: BatchView) -> None:
        """What iterations took since is owed or paid back; where nobody decodes, nobody is owed."""
        promised_s = (view.iterations - self._iterations) * self.tpot_share * self.slo.tpot_ns / 1e9
        taken_s = (view.busy_ns - self._busy_ns) / 1e9
        self._debt_s = max(0.0, self._debt_s + taken_s - promised_s) if view.decodes.count else 0.0
        self._iterations, self._busy_ns = view.iterations, view.busy_ns

    def _place(self, sequence: SequenceView, now_ns: int) -> tuple[float, float]:
        positions = sequence.context_tokens + sequence.left_tokens
        deadline_ns = sequence.arrived_ns + self.slo.ttft_of(positions, int(sequence.has_images))
        service_s = self._rates_of().prefill_token_s * sequence.left_tokens
        return place(
            now_ns,
            sequence.arrived_ns,
            deadline_ns,
            service_s,
            self.patience_ns,
            sequence.priority,
            self.priority_ns,
        )

    def _alone(self, now_ns: int, first: SequenceView) -> int:
        """Tokens of an iteration without decodes: all of the first prompt where that presses, so that it is done at once."""
        if not self.by_deadline:
            return BIG
        hopeless, deadline_ns = self._place(first, now_ns)
        waits_ns = deadline_ns - now_ns - self._rates_of().prefill_token_s * first.left_tokens * 1e9
        presses = not hopeless and waits_ns < self.slo.ttft_ns
        return max(self.alone_tokens, first.ready_tokens) if presses else self.alone_tokens

    def _bearable(self, decodes: Decodes, cached_tokens: int, most: int, slow: float) -> int:
        """Prompt tokens that keep the iteration within the TPOT promised and the credit: the largest such multiple of
        `TOKENS_STEP`, at least `least_tokens`."""
        if self.times is None:
            return min(most, self.chunk_tokens)
        if isinstance(self.times, OnlineTimes) and self.times.version != self._version:
            self._version, self._allowed, self._rates = self.times.version, {}, None
        bound_s = (self.tpot_share * self.slo.tpot_ns / 1e9 + max(0.0, self.credit_s - self._debt_s)) / slow
        key = (
            -(-decodes.count // DECODES_STEP),
            -(-decodes.context_tokens // CONTEXT_STEP),
            -(-cached_tokens // CACHED_STEP),
            most,
            int(bound_s / BOUND_STEP_S),
        )
        known = self._allowed.get(key)
        if known is None:
            known = self._allowed[key] = self._search(*key)
        return known

    def _rates_of(self) -> StageRates:
        if self._rates is None:
            self._rates = StageRates.of(self.times) if self.times is not None else StageRates()
        return self._rates

    def _search(self, decodes: int, context: int, cached: int, most: int, bound: int) -> int:
        assert self.times is not None

        def iteration_s(tokens: int) -> float:
            assert self.times is not None
            chunks = ((tokens, cached * CACHED_STEP),)
            return self.times.iteration_s(BatchShape(chunks, decodes * DECODES_STEP, context * CONTEXT_STEP))

        low, high = 0, most // TOKENS_STEP
        while low < high:
            middle = (low + high + 1) // 2
            if iteration_s(middle * TOKENS_STEP) <= bound * BOUND_STEP_S:
                low = middle
            else:
                high = middle - 1
        return min(most, max(low * TOKENS_STEP, self.least_tokens))
