"""When the work of one simulated device is done: iterations and images, alone or beside each other.

An iteration by itself takes `StageTimes.iteration_s`. Iterations that only decode and follow each other without a pause and
with the same sequences are one *stretch*: the end of its n-th iteration is its start plus `decodes_s` of n, rounded once, so
that it does not matter whether they are gone through one by one or leapt over.

How iterations and the encoder slow each other is said in `perf/device_sharing.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tierline.core.nouns import NS_PER_S
from tierline.core.stage_times import BatchShape, StageTimes


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
        if not steps:
            return stretch.start_ns
        end_ns = stretch.ends.get(steps)
        if end_ns is None:
            seconds = self._times.decodes_s(stretch.decodes, stretch.context, steps)
            end_ns = stretch.ends[steps] = stretch.start_ns + _ns(seconds)
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
