"""The one loop: event -> scheduler -> actions -> journal -> backend -> event. Simulated and live runs share it.

Actions are recorded in the same transaction as their event, and carried out only afterwards: a crash in between is
mended at the next start, when the backend compares what was recorded with what exists. A journal that cannot be written
ends the run, since nothing may happen that is not recorded; so does any other failure within an event, since the
scheduler's state may then be half changed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from tierline.core.actions import Action, SetTimer
from tierline.core.contracts import Backend, Clock, Journal, Scheduler
from tierline.core.errors import StateUnusable
from tierline.core.events import Event, TimerFired

T = TypeVar("T")
MAX_BATCH = 128  # events in one transaction: many share one wait for the disk, and questions are answered in between


class CheckingScheduler(Scheduler, Protocol):
    """A scheduler that can tell beforehand whether events from users are acceptable."""

    def check(self, events: Sequence[Event]) -> None:
        """Raises `InvalidInput` or `Refused`, and then nothing has changed."""
        ...


class NullJournal:
    """Records nothing; for plain simulations."""

    def append(self, entries: Sequence[tuple[int, Event, Sequence[Action]]]) -> None:
        pass


class Driver:
    """Owns the loop. `run` blocks until the clock has no more events; `submit` and `query` may come from any thread."""

    def __init__(
        self, scheduler: CheckingScheduler, backend: Backend, clock: Clock, journal: Journal | None = None
    ) -> None:
        self._scheduler = scheduler
        self._backend = backend
        self._clock = clock
        self._journal: Journal = journal if journal is not None else NullJournal()
        self._lock = threading.RLock()
        self._closed = ""

    @property
    def closed(self) -> str:
        """Why no event is taken any more; "" while all is well."""
        return self._closed

    def run(self, until: Callable[[int], bool] | None = None) -> None:
        """Process events until there are none, or until `until(now_ns)` is true before one is handled.

        What is due already on a wall clock is recorded together, so that a crowd of reports costs one wait for the disk.
        """
        while (event := self._clock.next()) is not None:
            if until is not None and until(self._clock.now_ns()):
                return
            events = [event]
            while len(events) < MAX_BATCH and (more := self._clock.next_due()) is not None:
                events.append(more)
            with self._lock:
                self._process(events)

    def submit(self, events: Sequence[Event]) -> None:
        """Accept a user's events, all or none. On return they are durable and their actions under way.

        Raises `InvalidInput` or `Refused` with one sentence; then nothing has changed. Raises `StateUnusable` when the
        run is over or this ends it.
        """
        with self._lock:
            if self._closed:
                raise StateUnusable(self._closed)
            self._scheduler.check(events)
            try:
                self._process(events)
            except StateUnusable:
                raise
            except Exception as error:
                raise StateUnusable(self._closed) from error

    def close(self, sentence: str) -> None:
        """Take no more events; on return none is being handled. `sentence` tells users why."""
        with self._lock:
            self._closed = self._closed or sentence

    def query(self, question: Callable[[], T]) -> T:
        """Answer a question about the scheduler's state between two events."""
        with self._lock:
            return question()

    def _process(self, events: Sequence[Event]) -> None:
        if self._closed:
            raise StateUnusable(self._closed)
        try:
            now = self._clock.now_ns()
            entries = [(now, event, self._scheduler.handle(now, event)) for event in events]
            self._journal.append(entries)
            for _, _, actions in entries:
                for action in actions:
                    if isinstance(action, SetTimer):
                        self._clock.post(TimerFired(action.name), at_ns=action.at_ns)
                    else:
                        self._backend.execute(action)
        except StateUnusable as error:
            self._closed = str(error)
            raise
        except BaseException as error:
            self._closed = f"The scheduling loop failed ({type(error).__name__}: {error}); nothing accepted is lost."
            raise
