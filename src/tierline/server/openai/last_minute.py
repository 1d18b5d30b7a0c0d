"""What clients felt in the last minute, text and image requests apart; for people who look at a live server."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from tierline.runtime.serving_report import latencies

WINDOW_S = 60.0
REMEMBERED = 20_000  # ends; at more than 333 a second the window gets shorter, and says so
KINDS = ("text", "images")


class LastMinute:
    """Ends of the last `WINDOW_S` seconds. `clock`: seconds."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._since_s = clock()
        self._ends: deque[tuple[float, bool, float, float, bool]] = deque()

    def ended(self, has_images: bool, first_s: float, per_token_s: float, ok: bool) -> None:
        """A choice has ended. `first_s`: until its first token, `per_token_s`: between two of them; NaN = there were none."""
        if len(self._ends) == REMEMBERED:
            self._since_s = self._ends.popleft()[0]
        self._ends.append((self._clock(), has_images, first_s, per_token_s, ok))

    def told(self) -> dict[str, Any]:
        """`seconds` looked back upon, and of `text` and `images` each: answers and failures a second, and seconds at P50 and
        P99; None where nothing was measured."""
        now_s = self._clock()
        self._since_s = max(self._since_s, now_s - WINDOW_S)
        while self._ends and self._ends[0][0] < self._since_s:
            self._ends.popleft()
        seconds = max(now_s - self._since_s, 1e-9)
        told: dict[str, Any] = {"seconds": seconds}
        for kind in KINDS:
            ends = [end for end in self._ends if end[1] is (kind == "images")]
            done = [end for end in ends if end[4]]
            told[kind] = {
                "answered_per_s": len(done) / seconds,
                "failed_per_s": (len(ends) - len(done)) / seconds,
                "ttft": _percentiles([end[2] for end in done]),
                "tpot": _percentiles([end[3] for end in done]),
            }
        return told


def _percentiles(values: list[float]) -> dict[str, float | None]:
    import numpy as np

    found = latencies(np.array([value for value in values if not math.isnan(value)], np.float64))
    return {"p50": found.p50 if found.count else None, "p99": found.p99 if found.count else None}
