"""What a serving run was worth: latencies, throughput and goodput, for text and image requests apart. Pure.

The same figures for the simulator, paced instances and `tierline load`. Definitions:

- TTFT: first token − arrival. E2E: last token − arrival. TPOT: (last token − first token) / (output tokens − 1), of
  requests with two tokens or more.
- A request *met* the SLO if it finished, its TTFT was within what was promised to a request of its size and images
  (`Slo.ttft_of`) and its TPOT within `tpot_ns`; where there is one token only, TTFT alone counts. What was refused, failed or
  never answered did not meet it.
- The *window* [from, until) chooses requests by their arrival; it is given (a run without its warm-up and without the time
  in which it runs empty), or goes from the first arrival to the last end.
- goodput: requests of the window that met the SLO, per second of the window and device. attainment: their share of all that
  arrived in it, whatever became of them.
- throughput (requests and output tokens): requests that finished within the window, per second of it, all devices.
- Percentiles are of finished requests, linear between two neighbours (numpy's default).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.core.nouns import NS_PER_S
from tierline.core.served_outcome import FINISHED, UNFINISHED, ServedOutcome
from tierline.core.slo import Slo
from tierline.core.views import Floats

__all__ = ["FINISHED", "UNFINISHED", "Latencies", "ModalityReport", "ServedOutcome", "ServingReport", "report"]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds; NaN where nothing was measured."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class ModalityReport:
    """Figures of one kind of request. `ttft_attainment`, `tpot_attainment`: shares of all that arrived which met that half
    of the SLO; `attainment` both. `errors`: (kind, count), most frequent first. Rates per second of the window;
    `goodput_per_device` is the headline."""

    requests: int
    finished: int
    errors: tuple[tuple[str, int], ...]
    ttft: Latencies
    tpot: Latencies
    e2e: Latencies
    attainment: float
    ttft_attainment: float
    tpot_attainment: float
    goodput_per_s: float
    goodput_per_device: float
    requests_per_s: float
    output_tokens_per_s: float


@dataclass(frozen=True, slots=True)
class ServingReport:
    """`all` requests, and those without (`text`) and with images (`images`) apart. `slo`: what they were judged
    by, None = nothing was promised. `offered_per_s`: arrivals."""

    slo: Slo | None
    devices: int
    from_ns: int
    until_ns: int
    offered_per_s: float
    all: ModalityReport
    text: ModalityReport
    images: ModalityReport

    @property
    def seconds(self) -> float:
        return (self.until_ns - self.from_ns) / NS_PER_S


def report(
    outcomes: Iterable[ServedOutcome],
    slo: Slo | None = None,
    devices: int = 1,
    window_ns: tuple[int, int] | None = None,
) -> ServingReport:
    """Judge a run, in any order of its outcomes. Without an SLO every finished request meets it.

    Raises InvalidInput for no outcomes, no device or an empty window.
    """
    rows = list(outcomes)
    if not rows or devices < 1:
        raise InvalidInput(f"a serving report needs requests and devices, but got {len(rows)} and {devices}.")
    table = _Table.of(rows, slo)
    ends = max(int(table.finished_ns.max()), int(table.first_ns.max()), int(table.arrived_ns.max()) + 1)
    from_ns, until_ns = window_ns or (int(table.arrived_ns.min()), ends)
    if until_ns <= from_ns:
        raise InvalidInput(f"the window of a serving report must not be empty, but it is {from_ns} to {until_ns} ns.")
    seconds = (until_ns - from_ns) / NS_PER_S
    arrived = (table.arrived_ns >= from_ns) & (table.arrived_ns < until_ns)
    finished = table.ok & (table.finished_ns >= from_ns) & (table.finished_ns <= until_ns)
    each = [
        table.modality(rows, arrived & chosen, finished & chosen, devices, seconds)
        for chosen in (np.ones_like(table.images), ~table.images, table.images)
    ]
    return ServingReport(slo, devices, from_ns, until_ns, int(arrived.sum()) / seconds, *each)


Flags = np.ndarray[tuple[int], np.dtype[np.bool_]]
Integers = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class _Table:
    """The outcomes as columns: 100,000 of them in a tenth of a second."""

    arrived_ns: Integers
    first_ns: Integers
    finished_ns: Integers
    tokens: Integers
    images: Flags
    ok: Flags
    ttft_met: Flags
    tpot_met: Flags

    @classmethod
    def of(cls, rows: list[ServedOutcome], slo: Slo | None) -> _Table:
        in_time = [_in_time(row, slo) for row in rows]
        return cls(
            np.array([row.arrived_ns for row in rows], np.int64),
            np.array([row.first_token_ns for row in rows], np.int64),
            np.array([row.finished_ns for row in rows], np.int64),
            np.array([row.output_tokens for row in rows], np.int64),
            np.array([row.images > 0 for row in rows], np.bool_),
            np.array([row.ok and row.first_token_ns >= 0 for row in rows], np.bool_),
            np.array([ttft for ttft, _ in in_time], np.bool_),
            np.array([tpot for _, tpot in in_time], np.bool_),
        )

    def modality(
        self, rows: list[ServedOutcome], arrived: Flags, finished: Flags, devices: int, seconds: float
    ) -> ModalityReport:
        done = arrived & self.ok
        ttft = (self.first_ns - self.arrived_ns) / NS_PER_S
        e2e = (self.finished_ns - self.arrived_ns) / NS_PER_S
        several = self.tokens >= 2
        tpot = np.where(several, (self.finished_ns - self.first_ns) / NS_PER_S / np.maximum(self.tokens - 1, 1), 0.0)
        ttft_met, tpot_met = done & self.ttft_met, done & self.tpot_met
        requests, met = int(arrived.sum()), int((ttft_met & tpot_met).sum())
        errors = Counter(
            UNFINISHED if rows[i].ok else rows[i].outcome for i in np.flatnonzero(arrived & ~self.ok).tolist()
        )
        return ModalityReport(
            requests=requests,
            finished=int(done.sum()),
            errors=tuple(sorted(errors.items(), key=lambda item: (-item[1], item[0]))),
            ttft=latencies(ttft[done]),
            tpot=latencies(tpot[done & several]),
            e2e=latencies(e2e[done]),
            attainment=met / requests if requests else math.nan,
            ttft_attainment=int(ttft_met.sum()) / requests if requests else math.nan,
            tpot_attainment=int(tpot_met.sum()) / requests if requests else math.nan,
            goodput_per_s=met / seconds,
            goodput_per_device=met / seconds / devices,
            requests_per_s=int(finished.sum()) / seconds,
            output_tokens_per_s=int(self.tokens[finished].sum()) / seconds,
        )


def _in_time(row: ServedOutcome, slo: Slo | None) -> tuple[bool, bool]:
    """Whether the first token of a finished request came in time, and the others on average."""
    if slo is None:
        return True, True
    ttft_ns, later = row.first_token_ns - row.arrived_ns, max(0, row.output_tokens - 1)
    return (
        ttft_ns <= slo.ttft_of(row.prompt_tokens, row.images),
        not later or row.finished_ns - row.first_token_ns <= slo.tpot_ns * later,
    )


def latencies(seconds: Floats) -> Latencies:
    """Mean and percentiles of `seconds`."""
    if not len(seconds):
        return Latencies(0, math.nan, math.nan, math.nan, math.nan)
    p50, p90, p99 = (float(value) for value in np.percentile(seconds, [50, 90, 99]))
    return Latencies(len(seconds), float(np.sort(seconds).mean()), p50, p90, p99)  # sorted: one sum for every order
