"""Measures of a run, and their text in Prometheus' format.

`Measured` stands before a scheduler and times what it does; a round is the handling of a `TimerFired`.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from tierline.core.actions import Action
from tierline.core.events import Event, TimerFired
from tierline.core.nouns import Phase
from tierline.core.status import ClusterStatus, JobStatus
from tierline.runtime.driver import CheckingScheduler

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)


@dataclass(slots=True)
class Histogram:
    """Seconds in fixed buckets; `counts` has one place more than `BUCKETS_S`, for what is above them all."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS_S) + 1))
    sum_s: float = 0.0

    def observe(self, seconds: float) -> None:
        place = next((n for n, bound in enumerate(BUCKETS_S) if seconds <= bound), len(BUCKETS_S))
        self.counts[place] += 1
        self.sum_s += seconds


@dataclass(slots=True)
class Measures:
    """Counted since the daemon began."""

    events: Counter[str] = field(default_factory=Counter)
    actions: Counter[str] = field(default_factory=Counter)
    round_s: Histogram = field(default_factory=Histogram)
    event_s: Histogram = field(default_factory=Histogram)


class Measured:
    """The scheduler behind it, with its work counted and timed."""

    def __init__(self, scheduler: CheckingScheduler, measures: Measures) -> None:
        self._scheduler = scheduler
        self._measures = measures

    def check(self, events: Sequence[Event]) -> None:
        self._scheduler.check(events)

    def handle(self, now_ns: int, event: Event) -> Sequence[Action]:
        begin = time.perf_counter()
        actions = self._scheduler.handle(now_ns, event)
        seconds = time.perf_counter() - begin
        (self._measures.round_s if isinstance(event, TimerFired) else self._measures.event_s).observe(seconds)
        self._measures.events[type(event).__name__] += 1
        self._measures.actions.update(type(action).__name__ for action in actions)
        return actions


def prometheus(measures: Measures, cluster: ClusterStatus, jobs: Iterable[JobStatus]) -> str:
    """The exposition text, version 0.0.4."""
    phases = Counter(job.phase for job in jobs)
    lines = _gauge(
        "tierline_jobs",
        "Jobs per phase.",
        [(f'phase="{phase.name.lower()}"', phases[phase.name.lower()]) for phase in Phase],
    )
    devices: Counter[tuple[str, str]] = Counter()
    for device in cluster.devices:
        state = "blocked" if device.blocked else "busy" if device.job_id else "free"
        devices[device.gpu_type, state] += 1
    types = sorted({device.gpu_type for device in cluster.devices})
    lines += _gauge(
        "tierline_devices",
        "Devices per type and state.",
        [(f'type="{_label(t)}",state="{s}"', devices[t, s]) for t in types for s in ("busy", "free", "blocked")],
    )
    lines += _gauge(
        "tierline_price",
        "Clearing price per device type, utility per GPU-second.",
        [(f'type="{_label(t)}"', price) for t, price in cluster.price],
    )
    lines += _counter("tierline_events_total", "Events handled since the start.", measures.events)
    lines += _counter("tierline_actions_total", "Actions taken since the start.", measures.actions)
    lines += _histogram("tierline_round_seconds", "Time of one scheduling round.", measures.round_s)
    lines += _histogram("tierline_event_seconds", "Time of one event other than a round.", measures.event_s)
    return "\n".join(lines) + "\n"


def _label(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _gauge(name: str, text: str, rows: Iterable[tuple[str, float]]) -> list[str]:
    return [
        f"# HELP {name} {text}",
        f"# TYPE {name} gauge",
        *(f"{name}{{{labels}}} {value:g}" for labels, value in rows),
    ]


def _counter(name: str, text: str, counts: Counter[str]) -> list[str]:
    rows = [f'{name}{{kind="{kind}"}} {count}' for kind, count in sorted(counts.items())]
    return [f"# HELP {name} {text}", f"# TYPE {name} counter", *rows]


def _histogram(name: str, text: str, histogram: Histogram) -> list[str]:
    lines, running = [f"# HELP {name} {text}", f"# TYPE {name} histogram"], 0
    for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), histogram.counts, strict=True):
        running += count
        lines.append(f'{name}_bucket{{le="{bound}"}} {running}')
    return [*lines, f"{name}_sum {histogram.sum_s:.9g}", f"{name}_count {running}"]
