"""One clock, integer nanoseconds. Events wait in a heap with the key (time_ns, order, seq), so ties are decided.

`SimClock` jumps to the next event; `WallClock` waits for it. The runtime's loop is the same over both.
"""

from __future__ import annotations

import heapq
import itertools
import threading
import time
from enum import IntEnum
from typing import Protocol

from tierline.core.events import Event, JobExited, ProgressReported, TimerFired
from tierline.core.serving_events import Tick


class Order(IntEnum):
    """What comes first among events of the same nanosecond: facts before decisions, reports before the ends they precede."""

    FACT = 0
    REPORT = 1
    EXIT = 2
    FILL = 3
    QUANTUM = 4


def order_of(event: Event) -> Order:
    if isinstance(event, Tick):
        return Order.QUANTUM
    if isinstance(event, TimerFired):
        return Order.QUANTUM if event.name == "quantum" else Order.FILL
    if isinstance(event, ProgressReported):
        return Order.REPORT
    if isinstance(event, JobExited):
        return Order.EXIT
    return Order.FACT


class EventSource(Protocol):
    """Makes events when they are due instead of posting them beforehand, so that it can still take them back."""

    def next_before(self, limit: tuple[int, int] | None) -> tuple[int, Event] | None:
        """Its earliest event as (time_ns, event) if that comes before `limit` (time_ns, order; None = no limit)."""
        ...


class SimClock:
    """Virtual time: `next` returns the earliest event and sets the time to it."""

    def __init__(self, start_ns: int = 0) -> None:
        self._source: EventSource | None = None
        self._now_ns = start_ns
        self._heap: list[tuple[int, int, int, Event]] = []
        self._seq = itertools.count()

    def now_ns(self) -> int:
        return self._now_ns

    def post(self, event: Event, *, at_ns: int | None = None) -> None:
        at = self._now_ns if at_ns is None else max(at_ns, self._now_ns)
        heapq.heappush(self._heap, (at, order_of(event), next(self._seq), event))

    def attach(self, source: EventSource) -> None:
        """Ask `source` for its events too; there is at most one (a simulated cluster)."""
        self._source = source

    def next(self) -> Event | None:
        if self._source is not None:
            limit = self._heap[0][:2] if self._heap else None
            if (made := self._source.next_before(limit)) is not None:
                self._now_ns = max(made[0], self._now_ns)
                return made[1]
        if not self._heap:
            return None
        at, _, _, event = heapq.heappop(self._heap)
        self._now_ns = at
        return event

    def next_due(self) -> None:
        """Nothing: in virtual time waiting is free, so every event is a step of its own."""


class WallClock:
    """Real time (Unix epoch, so that it survives a restart; never steps back within a process).

    `post` may be called from any thread. `next` blocks until an event is due; None after `close`. `not_before_ns` is
    the time of the newest event on record: a machine clock that was set back does not take the run back with it.
    """

    def __init__(self, not_before_ns: int = 0) -> None:
        self._heap: list[tuple[int, int, int, Event]] = []
        self._seq = itertools.count()
        self._changed = threading.Condition()
        self._closed = False
        self._epoch_ns = max(time.time_ns(), not_before_ns) - time.monotonic_ns()

    def now_ns(self) -> int:
        return self._epoch_ns + time.monotonic_ns()

    def post(self, event: Event, *, at_ns: int | None = None) -> None:
        with self._changed:
            at = self.now_ns() if at_ns is None else at_ns
            heapq.heappush(self._heap, (at, order_of(event), next(self._seq), event))
            self._changed.notify()

    def next(self) -> Event | None:
        with self._changed:
            while not self._closed:
                wait_ns = self._heap[0][0] - self.now_ns() if self._heap else None
                if wait_ns is not None and wait_ns <= 0:
                    return heapq.heappop(self._heap)[3]
                self._changed.wait(None if wait_ns is None else wait_ns / 1e9)
            return None

    def next_due(self) -> Event | None:
        with self._changed:
            if self._closed or not self._heap or self._heap[0][0] > self.now_ns():
                return None
            return heapq.heappop(self._heap)[3]

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
