"""Both sums of a region over time, in as many equal stretches as a picture has room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tierline.kernels.region import RegionSeen

BARS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Course:
    """`mean` over time and `peak` of each stretch, for both sums; `begin_ns` to `end_ns` on the region's clock."""

    begin_ns: int
    end_ns: int
    sm_mean: tuple[float, ...]
    sm_peak: tuple[float, ...]
    bw_mean: tuple[float, ...]
    bw_peak: tuple[float, ...]

    @property
    def stretch_ns(self) -> float:
        return (self.end_ns - self.begin_ns) / max(len(self.sm_mean), 1)


def course(region: RegionSeen, stretches: int, window: tuple[int, int] | None = None) -> Course:
    """Of the whole trace, or of `window` (from, to) on the region's clock. A trace without two times is empty."""
    changes = [change for change in region.changes if change.kind != "waits"]
    begin_ns, end_ns = window or ((changes[0].at_ns, changes[-1].at_ns) if changes else (0, 0))
    if end_ns <= begin_ns or not changes:
        return Course(begin_ns, end_ns, (), (), (), ())
    times = [change.at_ns for change in changes]
    sm = _stretched(times, [change.sm_util for change in changes], begin_ns, end_ns, stretches)
    bw = _stretched(times, [change.bw_util for change in changes], begin_ns, end_ns, stretches)
    return Course(begin_ns, end_ns, *sm, *bw)


def _stretched(
    times: Sequence[int], values: Sequence[float], begin_ns: int, end_ns: int, stretches: int
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and peak of a step function; a value holds from its time until the next one's."""
    width = (end_ns - begin_ns) / stretches
    area, peak = [0.0] * stretches, [0.0] * stretches
    for time, until, value in zip(times, [*times[1:], end_ns], values, strict=True):
        start, end = max(time, begin_ns) - begin_ns, min(until, end_ns) - begin_ns
        if end <= start:
            continue  # nothing ran so: of several changes at one time the last one holds
        for i in range(int(start / width), min(int(end / width), stretches - 1) + 1):
            part = min(end, (i + 1) * width) - max(start, i * width)
            if part > 0:
                area[i] += value * part
                peak[i] = max(peak[i], value)
    return tuple(each / width for each in area), tuple(peak)


def bars(values: Sequence[float], top: float = 1.0) -> str:
    """One character a value, on a scale from 0 to `top`; what is above it is cut off.

    >>> bars([0, 0.25, 0.5, 1.0, 2.0])
    ' ▂▄██'
    """
    full = len(BARS) - 1
    return "".join(BARS[max(0, min(full, round(value / top * full)))] for value in values)


def time_limited(region: RegionSeen) -> str:
    """How long the trace is, for a caption."""
    if not region.changes:
        return "nothing"
    length_ms = (region.changes[-1].at_ns - region.changes[0].at_ns) / 1e6
    return f"the last {length_ms:,.1f} ms" if region.is_cut else f"{length_ms:,.1f} ms"
