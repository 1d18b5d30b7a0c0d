"""What requests of the serving tier will ask for: device seconds of each stage, output still to come, demand in instances.

Each formula is one function with its equation. Nothing here knows how long an answer will be before it has ended.
"""

from __future__ import annotations

import bisect
import heapq
import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.core.stage_times import PATCHES_PER_TOKEN, BatchShape, StageTimes

PROBE_TOKENS = 2048  # a chunk large enough that the matrix products are bound by arithmetic
PROBE_DECODES = 64
TIPPING_PROMPT = 64
PROBE_CONTEXT = 1024
PRIOR_TOKENS = 200.0  # of an answer, before any has ended; a middling chat answer in ServeGen and Azure traces
PRIOR_ANSWERS = 16  # that many of that length stand beside those seen, where these have no end to show

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class StageRates:
    """`StageTimes` made linear, so that a prediction costs a nanosecond's thought for each of 64 instances.

    The defaults are of no device; they keep the order of magnitude of a 7B model on a large GPU, for deployments without
    times, until instances tell how long things take (`perf/fitted_rates.py`). Seconds.
    """

    prefill_token_s: float = 40e-6
    prefill_pair_s: float = 2e-9  # for each (token, token before it) of a prompt
    decode_base_s: float = 8e-3
    decode_sequence_s: float = 30e-6
    decode_context_s: float = 20e-9
    encode_base_s: float = 5e-3
    encode_patch_s: float = 6e-6
    transfer_base_s: float = 1e-3
    transfer_byte_s: float = 1e-11
    kv_token_bytes: int = 57_344
    tipping_tokens: int = 512
    patches_per_token: int = PATCHES_PER_TOKEN

    @classmethod
    def of(cls, times: StageTimes) -> StageRates:
        """From a dozen questions to `times`."""
        whole = times.iteration_s(BatchShape(chunks=((PROBE_TOKENS, 0),)))
        late = times.iteration_s(BatchShape(chunks=((PROBE_TOKENS, 4 * PROBE_TOKENS),)))
        pair = max(0.0, late - whole) / (PROBE_TOKENS * 4 * PROBE_TOKENS)
        few, many = (times.iteration_s(BatchShape(decodes=n, decode_context=n)) for n in (1, PROBE_DECODES))
        deep = times.iteration_s(BatchShape(decodes=PROBE_DECODES, decode_context=PROBE_DECODES * PROBE_CONTEXT))
        sequence = max(0.0, many - few) / (PROBE_DECODES - 1)
        try:
            small, large = times.encode_s((256,)), times.encode_s((4096,))
        except InvalidInput:  # of a model without an encoder; none of its requests has an image
            small = large = 0.0
        patch = max(0.0, large - small) / (4096 - 256)
        setup, mega = times.transfer_s(0), times.transfer_s(1 << 20)
        return cls(
            prefill_token_s=whole / PROBE_TOKENS,
            prefill_pair_s=pair,
            decode_base_s=few,
            decode_sequence_s=sequence,
            decode_context_s=max(0.0, deep - many) / (PROBE_DECODES * (PROBE_CONTEXT - 1)),
            encode_base_s=max(0.0, small - 256 * patch),
            encode_patch_s=patch,
            transfer_base_s=setup,
            transfer_byte_s=max(0.0, mega - setup) / (1 << 20),
            kv_token_bytes=times.kv_token_bytes,
            tipping_tokens=tipping_point(times),
            patches_per_token=times.patches_per_token,
        )

    def prefill_s(self, tokens: int, cached: int = 0) -> float:
        """`n = tokens - cached; T = a n + b n (cached + n / 2 - probe / 2)`, the quadratic part of attention beyond what the
        rate `a`, measured on a chunk of `PROBE_TOKENS`, has in it. At least a hundredth of the linear part."""
        new = max(0, tokens - cached)
        linear = self.prefill_token_s * new
        return max(0.01 * linear, linear + self.prefill_pair_s * new * (cached + (new - PROBE_TOKENS) / 2))

    def encode_s(self, patches: int) -> float:
        """`T = a + b patches` of one image; 0 for none."""
        return self.encode_base_s + self.encode_patch_s * patches if patches else 0.0

    def image_s(self, tokens: int) -> float:
        """`encode_s` of an image that takes so many positions of a prompt."""
        return self.encode_s(self.patches_per_token * tokens)

    def decode_s(self, sequences: float, context_tokens: float) -> float:
        """`T = a + b (sequences - 1) + c context`, of one iteration; 0 for none."""
        if sequences <= 0:
            return 0.0
        return (
            self.decode_base_s
            + self.decode_sequence_s * max(0.0, sequences - 1)
            + (self.decode_context_s * context_tokens)
        )

    def move_s(self, context_tokens: float) -> float:
        """`M(r) = setup + KV bytes / bandwidth`."""
        return self.transfer_base_s + self.transfer_byte_s * self.kv_token_bytes * context_tokens


def tipping_point(times: StageTimes) -> int:
    """Tokens at which an iteration turns from memory-bound to compute-bound: what the tokens take by themselves is as long as
    what any iteration takes (ElasticMM's and LoongServe's tipping point, which they profile offline).

    `T(1) / m`, `m = (T(2 n) - T(n)) / n` of prompts of `TIPPING_PROMPT` tokens, too short for attention to count. At least 1.
    """

    def prompts_s(tokens: int) -> float:
        return times.iteration_s(BatchShape(chunks=((TIPPING_PROMPT, 0),) * (tokens // TIPPING_PROMPT)))

    each = (prompts_s(2 * PROBE_TOKENS) - prompts_s(PROBE_TOKENS)) / PROBE_TOKENS
    return max(1, round(times.iteration_s(BatchShape(chunks=((1, 0),))) / each)) if each > 0 else PROBE_TOKENS


def decode_demand_s(
    rates: StageRates, output_tokens: float, prompt_tokens: float, batch: float = PROBE_DECODES
) -> float:
    """Device seconds of one answer's decoding in a batch of `batch` of its kind: `n T(batch, batch (p + n / 2)) / batch`."""
    context = prompt_tokens + output_tokens / 2
    return output_tokens * rates.decode_s(batch, batch * context) / batch


def burst_tolerance(capacity: float, demand: float) -> float:
    """`bt(i) = capacity_i / n_i`, both in instances: how many times its mean demand a group can take (SHEPHERD, NSDI 2023;
    ElasticMM, equation 1). Infinite without demand."""
    return capacity / demand if demand > 0 else math.inf


def share_out(spare: int, capacity: Mapping[K, int], demand: Mapping[K, float]) -> dict[K, int]:
    """Each spare instance to the group of lowest burst tolerance, one after the other: `max min_i bt(i)`. Ties go to the
    larger demand, then to the first."""
    given = dict(capacity)
    for _ in range(spare):
        poorest = min(given, key=lambda group: (burst_tolerance(given[group], demand[group]), -demand[group]))
        given[poorest] += 1
    return given


@dataclass(slots=True)
class OutputHistory:
    """How long answers are, from the last `window` that ended and from how far those are that have not.

    Answers that ended first are the short ones, so a mean of them alone is too small for as long as the longest take.
    The product-limit estimate (Kaplan and Meier 1958) takes those that still run as longer than they are:
    `S(l) = prod_{ended i: l_i <= l} (1 - 1 / n_i)`, n_i = answers, ended or running, of l_i tokens or more. Beyond the
    longest that ended the tail is taken for exponential, its mean all tokens made over all ends."""

    window: int = 2048
    lengths: deque[int] = field(default_factory=deque)
    _sorted: list[int] = field(default_factory=list)  # `lengths` in order
    _known: list[int] = field(default_factory=list)  # the same when `learn` was called
    _above: list[float] = field(default_factory=list)  # S from each of them on
    _rest: list[float] = field(default_factory=list)  # the integral of S from each of them on
    _tail: float = PRIOR_TOKENS

    def ended(self, output_tokens: int) -> None:
        self.lengths.append(output_tokens)
        bisect.insort(self._sorted, output_tokens)
        if len(self.lengths) > self.window:
            del self._sorted[bisect.bisect_left(self._sorted, self.lengths.popleft())]

    def learn(self, running: Iterable[int]) -> None:
        """Predict from here on by what has ended so far and by answers of `running` tokens that go on."""
        known, longer = np.array(self._sorted, dtype=np.int64), np.array([*running], dtype=np.int64)
        self._tail = (PRIOR_ANSWERS * PRIOR_TOKENS + int(known.sum() + longer.sum())) / (PRIOR_ANSWERS + len(known))
        if not len(known):
            self._known, self._above, self._rest = [], [], []
            return
        shorter = np.bincount(np.searchsorted(known, longer, "right"), minlength=len(known) + 1).cumsum()
        left = len(known) + len(longer) - np.arange(len(known)) - shorter[:-1]
        above = np.cumprod(1 - 1 / left)
        last = above[-1] * self._beyond(int(known[-1]))
        rest = np.concatenate(([last], (above[:-1] * np.diff(known))[::-1])).cumsum()[::-1]
        self._known, self._above, self._rest = known.tolist(), above.tolist(), rest.tolist()

    def remaining(self, output_tokens: int) -> float:
        """`E[l - m | l > m]`, m tokens made so far (Past-Future, ASPLOS 2025, in expectation). Beyond the longest that ended
        at least half of what was made, as of a tail without memory of scale. At least 1."""
        at = bisect.bisect_right(self._known, output_tokens)
        share = self._above[at - 1] if at else 1.0
        if at == len(self._known):
            return self._beyond(output_tokens) if share > 0.0 else max(1.0, output_tokens / 2)
        rest = self._rest[at] + share * (self._known[at] - output_tokens)
        return max(1.0, rest / share)

    def _beyond(self, output_tokens: int) -> float:
        """Tokens still to come of one longer than any that ended, where some are."""
        return max(self._tail, output_tokens / 2)


@dataclass(slots=True)
class DemandMeter:
    """Exponentially weighted demand of one modality: each request adds its predicted device seconds, which fade with time
    constant `tau_s`. `n = sum_r s_r exp(-(now - t_r) / tau) / tau` tends to arrival rate x mean service demand; before a
    `tau_s` has passed since the first request the time since then stands for it, so that it is not taken for too small."""

    tau_s: float = 8.0
    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    count: float = 0.0
    first_ns: int = -1
    last_ns: int = 0

    def arrived(self, now_ns: int, encode_s: float, prefill_s: float, decode_s: float) -> None:
        self._fade(now_ns)
        self.encode += encode_s
        self.prefill += prefill_s
        self.decode += decode_s
        self.count += 1

    def demand(self, now_ns: int) -> tuple[float, float, float, float]:
        """(requests per second, encode, prefill, decode in instances)."""
        if self.first_ns < 0:
            return 0.0, 0.0, 0.0, 0.0
        self._fade(now_ns)
        since_s = (now_ns - self.first_ns) / 1e9
        weight_s = max(1.0, self.tau_s * (1 - math.exp(-since_s / self.tau_s)))
        return self.count / weight_s, self.encode / weight_s, self.prefill / weight_s, self.decode / weight_s

    def _fade(self, now_ns: int) -> None:
        if self.first_ns < 0:
            self.first_ns = self.last_ns = now_ns
        left = math.exp(-max(0, now_ns - self.last_ns) / 1e9 / self.tau_s)
        self.encode *= left
        self.prefill *= left
        self.decode *= left
        self.count *= left
        self.last_ns = max(now_ns, self.last_ns)


def completion_s(jobs: Iterable[float], speeds: Sequence[float]) -> list[float]:
    """`t(r | R, E)`: when each of the jobs R ends, in their order, if the longest is given to whom it ends earliest with,
    then the next longest, and so on (longest processing time first, Graham 1969). `speeds` of E: the share of its time that
    each has for them. Nobody with any: never."""
    jobs, able = list(jobs), [speed for speed in speeds if speed > 0]
    if not able:
        return [math.inf] * len(jobs)
    order = sorted(range(len(jobs)), key=lambda each: -jobs[each])
    ends = [0.0] * len(jobs)
    if min(able) == max(able):  # all alike: whoever is free first
        free = [0.0] * len(able)
        for place in order:
            ends[place] = free[0] + jobs[place] / able[0]
            heapq.heapreplace(free, ends[place])
        return ends
    busy = [0.0] * len(able)
    for place in order:
        job = jobs[place]
        at = min(range(len(able)), key=lambda each: busy[each] + job / able[each])
        busy[at] += job / able[at]
        ends[place] = busy[at]
    return ends


def makespan_s(jobs: Iterable[float], speeds: Sequence[float]) -> float:
    """`T(R, E) = max_r t(r | R, E)`, 0 for no jobs."""
    return max(completion_s(jobs, speeds), default=0.0)
