"""The Protocols that hold the tiers together. Schedulers know no policy, the runtime knows no backend: only these."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import ClassVar, Protocol, TypeVar, runtime_checkable

from tierline.core.actions import Action
from tierline.core.events import Event
from tierline.core.views import ClusterView, Plan

T = TypeVar("T")


@runtime_checkable
class JobPolicy(Protocol):
    """Decides which jobs shall hold which share of the cluster. Pure but for its own declared memory.

    `preemptive`: wants a round at every quantum. `needs_forecast`: wants `ClusterView.forecast`, with `needs_curves`
    also its `curves`. `work_conserving`: promises to leave no device free while an eligible job fits. `rng` is seeded by
    the round, so a decision depends on the view, the policy's memory and the run's seed alone.
    """

    preemptive: ClassVar[bool]
    needs_forecast: ClassVar[bool]
    needs_curves: ClassVar[bool]
    work_conserving: ClassVar[bool]

    def plan(self, view: ClusterView, rng: random.Random) -> Plan: ...


class Packing(Protocol):
    """Asks the policy for the exclusive allocation and adds who shall share a device with whom (`policies/jobs/packing`).

    `view.sharing` is never None. Pure, without memory.
    """

    def plan(self, policy: JobPolicy, view: ClusterView, rng: random.Random) -> Plan: ...


class Scheduler(Protocol):
    """A state machine without I/O: the only place where state changes and where hard limits hold."""

    def handle(self, now_ns: int, event: Event) -> Sequence[Action]: ...


class Clock(Protocol):
    """Time and the queue of events to come. `SimClock` jumps, `WallClock` waits; nothing else differs."""

    def now_ns(self) -> int: ...

    def post(self, event: Event, *, at_ns: int | None = None) -> None:
        """Deliver `event` at `at_ns` (None = now). Callable from any thread on a wall clock."""
        ...

    def next(self) -> Event | None:
        """The next event, after time has reached it; None when there is none and never will be, or on `close`."""
        ...

    def next_due(self) -> Event | None:
        """The next event if it is due already and may be taken along with the one before; never waits."""
        ...


class Backend(Protocol):
    """Carries actions out and answers with events through the clock it was given. A simulator is a backend."""

    def execute(self, action: Action) -> None:
        """Begin the action; never raises for a job's own failure (that is a `JobExited`) and never blocks for long."""
        ...

    def close(self) -> None: ...


class Journal(Protocol):
    """Where the runtime writes what happened: the event table, or nothing in a plain simulation."""

    def append(self, entries: Sequence[tuple[int, Event, Sequence[Action]]]) -> None:
        """Record (time_ns, event, actions), durable on return. Called before any action is carried out."""
        ...


class Loop(Protocol):
    """The one loop (`runtime/driver.py`), for who puts events in and asks questions from other threads."""

    def run(self) -> None: ...

    def submit(self, events: Sequence[Event]) -> None: ...

    def query(self, question: Callable[[], T]) -> T: ...

    def close(self, sentence: str) -> None: ...


EventSink = Callable[[Event], None]
