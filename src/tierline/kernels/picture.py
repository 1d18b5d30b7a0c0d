"""A region's picture as PNG (or any format matplotlib writes): both sums over time against their limits, above who ran and
who waited. The one file that draws with matplotlib for this tier."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tierline.core.errors import InvalidInput, MissingExtra
from tierline.kernels.course import course, time_limited
from tierline.kernels.region import RegionSeen
from tierline.kernels.trace import trace_events

WIDTH_IN, SUMS_IN, LANE_IN = 11.0, 1.7, 0.38
STRETCHES = 900
MOST_LANES = 16
_SM, _BW, _RUNS, _WAITS, _LIMIT = "#1f6fb4", "#d9822b", "#4b9e6b", "#c9433f", "#222222"


def draw(region: RegionSeen, path: Path, window_ms: tuple[float, float] | None = None) -> None:
    """Write the picture; `window_ms` (from, to) counts from the first change, None = all of the trace.

    Raises `MissingExtra`, `InvalidInput`.
    """
    if not region.changes:
        raise InvalidInput(f"{region.device} has no trace yet: no kernel was launched.")
    pyplot = _pyplot()
    begin_ns, last_ns = region.changes[0].at_ns, region.changes[-1].at_ns
    low_ms, high_ms = window_ms or (0.0, max((last_ns - begin_ns) / 1e6, 1e-6))
    if not 0 <= low_ms < high_ms:
        raise InvalidInput(f"the window {low_ms:g} to {high_ms:g} ms: 0 ≤ from < to is needed.")
    lanes = _lanes(region, low_ms, high_ms)
    height = 2 * SUMS_IN + LANE_IN * max(len(lanes), 1) + 1.5
    figure, axes = pyplot.subplots(
        3, 1, sharex=True, figsize=(WIDTH_IN, height), layout="constrained",
        height_ratios=[SUMS_IN, SUMS_IN, LANE_IN * max(len(lanes), 1) + 0.3],
    )  # fmt: skip
    try:
        _sums(region, axes[0], axes[1], (low_ms, high_ms))
        _draw_lanes(axes[2], lanes)
        axes[2].set_xlim(low_ms, high_ms)
        axes[2].set_xlabel("milliseconds from the first change")
        figure.suptitle(
            f"{region.device}, policy {region.policy}, mode {region.mode}: trace of {time_limited(region)}", fontsize=11
        )
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise InvalidInput(f"'{path}' cannot be written: {error}.") from None
    finally:
        pyplot.close(figure)


def _sums(region: RegionSeen, upper: Any, lower: Any, window_ms: tuple[float, float]) -> None:
    begin_ns = region.changes[0].at_ns
    seen = course(
        region, STRETCHES, (begin_ns + round(window_ms[0] * 1e6), begin_ns + max(round(window_ms[1] * 1e6), 1))
    )
    width_ms = seen.stretch_ns / 1e6
    at = [window_ms[0] + i * width_ms for i in range(len(seen.sm_mean) + 1)]
    rows = (
        (upper, "sum of SM use", seen.sm_mean, seen.sm_peak, region.alpha, _SM),
        (lower, "sum of bandwidth use", seen.bw_mean, seen.bw_peak, region.beta, _BW),
    )
    for axis, label, mean, peak, limit, colour in rows:
        axis.stairs(peak, at, fill=True, color=colour, alpha=0.28, label="largest in each stretch")
        axis.stairs(mean, at, color=colour, linewidth=1.3, label="mean")
        axis.axhline(limit, color=_LIMIT, linewidth=1.0, linestyle="--", label=f"limit {100 * limit:.0f} %")
        axis.set_ylim(0, max(1.12, 1.1 * max(peak, default=1.0)))
        axis.set_ylabel(label, fontsize=9)
        axis.yaxis.set_major_formatter(lambda share, _: f"{100 * share:.0f} %")
        axis.grid(axis="y", alpha=0.25)
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


Spans = list[tuple[float, float]]


def _lanes(region: RegionSeen, low_ms: float, high_ms: float) -> list[tuple[str, Spans, Spans]]:
    """Of each client with work in the window: its label, when it ran, when a launch of it waited (start, length in ms)."""
    runs: dict[int, Spans] = {}
    waits: dict[int, Spans] = {}
    for event in trace_events(region):
        if event["ph"] == "X":
            start, length = event["ts"] / 1e3, event["dur"] / 1e3
            if start + length >= low_ms and start <= high_ms:
                (runs if event["tid"] % 2 else waits).setdefault(event["pid"] - 1, []).append((start, length))
    least_ms = (high_ms - low_ms) / 4000  # thinner than a line of the picture
    busy = sorted({*runs, *waits}, key=lambda row: (region.clients[row].priority != "high", row))[:MOST_LANES]
    return [
        (
            f"{region.clients[row].label} ({region.clients[row].priority})",
            _joined(runs.get(row, ()), least_ms),
            _joined(waits.get(row, ()), least_ms),
        )
        for row in busy
    ]


def _joined(spans: Iterable[tuple[float, float]], gap_ms: float) -> Spans:
    """Spans that touch or nearly touch as one, so that a long trace draws quickly."""
    found: list[list[float]] = []
    for start, length in sorted(spans):
        if found and start <= found[-1][1] + gap_ms:
            found[-1][1] = max(found[-1][1], start + length)
        else:
            found.append([start, start + max(length, gap_ms)])
    return [(start, end - start) for start, end in found]


def _draw_lanes(axis: Any, lanes: list[tuple[str, Spans, Spans]]) -> None:
    for i, (_, runs, waits) in enumerate(lanes):
        axis.broken_barh(runs, (i - 0.38, 0.44), color=_RUNS, label="runs" if i == 0 else None)
        axis.broken_barh(waits, (i + 0.1, 0.24), color=_WAITS, label="waits" if i == 0 else None)
    axis.set_yticks(range(len(lanes)), [label for label, _, _ in lanes], fontsize=8)
    axis.set_ylim(len(lanes) - 0.4, -0.6)
    if lanes:
        axis.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)


def _pyplot() -> Any:
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise MissingExtra("a picture", "plot") from None
    matplotlib.use("agg")
    return importlib.import_module("matplotlib.pyplot")
