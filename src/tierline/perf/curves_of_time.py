"""Times over one size, as straight pieces between measured points."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Knots:
    """`seconds` at rising `sizes` (tokens, patches, pairs of positions); at least one."""

    sizes: tuple[float, ...]
    seconds: tuple[float, ...]

    def __post_init__(self) -> None:
        """Raises `ValueError` where this is no curve."""
        if not self.sizes or len(self.sizes) != len(self.seconds):
            raise ValueError(f"{len(self.sizes)} sizes and {len(self.seconds)} seconds: as many of each, 1 or more")
        if any(b <= a for a, b in zip(self.sizes, self.sizes[1:], strict=False)):
            raise ValueError("sizes have to rise")
        if not all(0.0 <= each < float("inf") for each in (*self.sizes, *self.seconds)):
            raise ValueError("sizes and seconds have to be 0 or more")


class Curve:
    """Knots ready to be read: constant before the first, along the last piece's slope beyond the last. O(log knots)."""

    __slots__ = ("_begins", "_ends", "_seconds", "_slopes")

    def __init__(self, knots: Knots) -> None:
        sizes, seconds = knots.sizes, knots.seconds
        steps = zip(sizes, sizes[1:], seconds, seconds[1:], strict=False)
        slopes = [(d - c) / (b - a) for a, b, c, d in steps]
        self._begins = [sizes[0], *sizes]
        self._seconds = [seconds[0], *seconds]
        self._slopes = [0.0, *slopes, slopes[-1] if slopes else 0.0]
        self._ends = list(sizes)

    def at(self, size: float) -> float:
        """Seconds of `size`."""
        place = bisect_right(self._ends, size)
        return self._seconds[place] + (size - self._begins[place]) * self._slopes[place]

    def total(self, first: float, step: float, count: int) -> float:
        """The sum of `at(first + k * step)` for k in 0..count-1, a piece at a time. `step` above 0."""
        found, done = 0.0, 0
        while done < count:
            size = first + done * step
            place = bisect_right(self._ends, size)
            here = count - done
            if place < len(self._ends):  # as many as lie before this piece's end
                here = min(here, max(1, -int(-(self._ends[place] - size) // step)))
            middle = size + step * (here - 1) / 2
            found += here * (self._seconds[place] + (middle - self._begins[place]) * self._slopes[place])
            done += here
        return found


def rising(seconds: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    """The rising sequence next to measured seconds by least squares of their logarithms: more work never takes less time."""
    from scipy.optimize import isotonic_regression  # half a second, which every instance would wait

    found: NDArray[np.float64] = np.exp(isotonic_regression(np.log(np.asarray(seconds, dtype=float))).x)
    return found


def thinned(knots: Knots, tolerance: float) -> Knots:
    """The curve by fewer of its knots, off by `tolerance` (relative) at most at those left out."""
    sizes, seconds = np.array(knots.sizes), np.array(knots.seconds)
    kept = [0]
    while kept[-1] < len(sizes) - 1:
        begin = end = kept[-1]
        for place in range(begin + 1, len(sizes)):
            between = slice(begin + 1, place)
            line = np.interp(sizes[between], sizes[[begin, place]], seconds[[begin, place]])
            if np.all(np.abs(line - seconds[between]) <= tolerance * seconds[between]):
                end = place
        kept.append(end)
    return Knots(tuple(sizes[kept].tolist()), tuple(seconds[kept].tolist()))
