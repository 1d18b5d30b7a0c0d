"""When the work of one simulated device is done: iterations and images, alone or beside each other.

An iteration by itself takes `StageTimes.iteration_s`. Iterations that only decode and follow each other without a pause and
with the same sequences are one *stretch*: the end of its n-th iteration is its start plus `decodes_s` of n, rounded once, so
that it does not matter whether they are gone through one by one or leapt over.

Beside each other (`overlapped`): an iteration of n tokens uses `min(1, n / ridge)` of the device's arithmetic and
`min(1, ridge / n)` of its memory bandwidth (the roofline: the one that is used up decides its time), the encoder uses the
shares in `Overlap`. Where a sum exceeds 1, both go slower by the larger of the two sums. So an image costs decodes little and
a large prompt chunk much, and nothing is ever gained beyond the device's arithmetic or bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tierline.core.nouns import NS_PER_S
from tierline.core.stage_times import BatchShape, StageTimes


@dataclass(frozen=True, slots=True)
class Overlap:
    """`ridge_tokens`: from so many tokens on an iteration is bound by arithmetic (H100 in bf16: 989 TFLOP/s over 3.35 TB/s,
    two operations and two bytes a weight). `encoder_arithmetic`, `encoder_bandwidth`: what an encoder uses of each while it
    runs alone; a vision tower's matrix products over thousands of patches reach most of the former."""

    ridge_tokens: float = 295.0
    encoder_arithmetic: float = 0.8
    encoder_bandwidth: float = 0.3

    def slowdown(self, tokens: int) -> float:
        """By which factor an iteration of so many tokens and an encoder slow each other."""
        share = tokens / self.ridge_tokens
        arithmetic, bandwidth = min(1.0, share), min(1.0, 1.0 / share) if share else 1.0
        return max(1.0, arithmetic + self.encoder_arithmetic, bandwidth + self.encoder_bandwidth)


@dataclass(slots=True)
class Work:
    """Something under way: at `since_ns` it had `left_ns` to go at full speed, and goes `slowdown` times slower."""

    left_ns: float
    since_ns: int
    slowdown: float = 1.0

    @property
    def end_ns(self) -> int:
        return self.since_ns + round(self.left_ns * self.slowdown)

    def change(self, now_ns: int, slowdown: float) -> None:
        """It goes at another speed from now on."""
        if slowdown != self.slowdown:
            self.left_ns = max(0.0, self.left_ns - (now_ns - self.since_ns) / self.slowdown)
            self.since_ns, self.slowdown = now_ns, slowdown


@dataclass(slots=True)
class _Stretch:
    start_ns: int
    decodes: int
    context: int
    done: int = 0
    end_ns: int = 0  # of its last iteration
    ends: dict[int, int] = field(default_factory=dict)  # by number of iterations, as far as asked for


class IterationTimer:
    """The ends of a device's iterations. `started` says when the one that begins now ends, or the n-th from it."""

    def __init__(self, times: StageTimes) -> None:
        self._times = times
        self._stretch: _Stretch | None = None
        self._start_ns = 0
        self._one_ns = 0

    def start(self, now_ns: int, batch: BatchShape) -> None:
        """An iteration begins."""
        stretch, decodes = self._stretch, batch.decodes
        if batch.chunks:
            self._stretch = None
            self._start_ns = now_ns
            self._one_ns = _ns(self._times.iteration_s(batch))
        elif (
            stretch is None
            or stretch.end_ns != now_ns
            or stretch.decodes != decodes
            or stretch.context + decodes * stretch.done != batch.decode_context
        ):
            self._stretch = _Stretch(now_ns, decodes, batch.decode_context)

    def end_ns(self, count: int = 1) -> int:
        """When `count` iterations from the one that began last have ended, at full speed; more than one of decodes only."""
        stretch = self._stretch
        if stretch is None:
            assert count <= 1
            return self._start_ns + count * self._one_ns
        steps = stretch.done + count
        end_ns = stretch.ends.get(steps)
        if end_ns is None:
            seconds = self._times.decodes_s(stretch.decodes, stretch.context, steps)
            end_ns = stretch.ends[steps] = stretch.start_ns + (_ns(seconds) if steps else 0)
        return end_ns

    def ended(self, now_ns: int, count: int, *, on_time: bool) -> None:
        """`count` iterations have ended; not `on_time` where something slowed the last."""
        if not on_time:
            self._stretch = None
        elif self._stretch is not None:
            self._stretch.done += count
            self._stretch.end_ns = now_ns

    def until(self, at_ns: int, most: int) -> int:
        """How many iterations, 0 to `most`, from the one that began last on have ended by `at_ns`."""
        begin_ns, last_ns = self.end_ns(0), self.end_ns(most)
        if last_ns <= at_ns:
            return most
        number = min(most, max(0, int((at_ns - begin_ns) / (last_ns - begin_ns) * most)))  # as good as linear
        while number < most and self.end_ns(number + 1) <= at_ns:
            number += 1
        while number and self.end_ns(number) > at_ns:
            number -= 1
        return number


def _ns(seconds: float) -> int:
    return max(1, round(seconds * NS_PER_S))
