"""A recorded trace at the wanted rate and length: what azure, azure-mm, burstgpt and mooncake share.

- Seed 0 begins at the trace's first request, any other seed at one that it draws; at its end a trace goes on at its
  beginning (with prefixes of their own, so that the second round shares none with the first).
- `scale=stretch` (the default): as many requests as are wanted are taken, and all gaps multiplied by one number, so that
  these have the wanted rate. Bursts keep their shape in requests, not in seconds.
- `scale=thin`: each request is kept with probability wanted rate / trace rate, times stay as recorded; the wanted rate
  must not be above the trace's.
- Neither `seconds` nor `requests`: the whole trace once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.workloads.serving.columns import Columns
from tierline.workloads.serving.want import Want

SCALES = ("stretch", "thin")
THIN_MARGIN = 6.0  # standard deviations of the number kept


@dataclass(frozen=True, slots=True)
class TraceOptions:
    scale: str = "stretch"


def replayed(name: str, trace: Columns, want: Want, scale: str) -> Columns:
    """`trace` as `want` has it. Raises InvalidInput for an unknown `scale`, a trace without length, or thinning upwards."""
    if scale not in SCALES:
        raise InvalidInput(f"option 'scale' of workload '{name}' is stretch or thin, but got '{scale}'.")
    rows = len(trace)
    span_s = float(trace.arrived_s[-1] - trace.arrived_s[0])
    if span_s <= 0.0:
        raise InvalidInput(f"workload '{name}': all {rows} requests have the same time, so there is no rate to replay.")
    period_s = span_s * rows / (rows - 1)  # a mean gap between the last request and the first of the next round
    own_rate = rows / period_s
    rate = want.rate or own_rate
    if scale == "thin" and rate > own_rate:
        raise InvalidInput(
            f"workload '{name}' has {own_rate:.3g} requests/s, which thinning cannot make {rate:g}: give scale=stretch."
        )
    rng = want.rng(f"{name} replayed")
    first = int(rng.integers(rows)) if want.seed else 0
    count = _needed(want, rate, rows)
    if scale == "thin":
        spare = THIN_MARGIN * math.sqrt(count) + THIN_MARGIN**2
        count = math.ceil((count + spare) * own_rate / rate) if want.seconds or want.requests else rows
    places = np.arange(count + 1) + first
    lap = places // rows
    times = trace.arrived_s[places % rows] + lap * period_s
    times -= times[0]
    if scale == "stretch":
        times *= count / rate / times[-1] if times[-1] > 0.0 else 1.0
    lap = lap[:-1]
    found = replace(trace.take(places[:-1] % rows), arrived_s=times[:-1])
    if trace.prefixes and lap[-1]:
        found = replace(
            found,
            prefixes=tuple(
                tuple((f"{key}@{turn}", tokens) for key, tokens in prefix) if turn else prefix
                for prefix, turn in zip(found.prefixes, lap.tolist(), strict=True)
            ),
        )
    if scale == "thin":
        found = found.take(np.flatnonzero(rng.random(len(found)) < rate / own_rate))
    return found.limited(want.seconds, want.requests)


def _needed(want: Want, rate: float, rows: int) -> int:
    """How many requests are wanted."""
    if not want.seconds and not want.requests:
        return rows
    by_time = max(1, round(want.seconds * rate)) if want.seconds else want.requests
    return min(by_time, want.requests) if want.requests else by_time
