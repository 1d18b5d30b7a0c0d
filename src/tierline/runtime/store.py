"""The event table in SQLite: the truth of a live run. State is a fold over it (`replay.py`); snapshots shorten that.

Tables::

    meta(key, value)                         schema, created_ns
    runs(run, after_seq, time_ns, version, setting)   one row each time a daemon began, with what decides its decisions
    events(seq, time_ns, kind, body, actions)         each event together with the actions the scheduler answered
    mentions(job_id, what, seq)              which events concern a job: 'event' | 'action' | 'report'
    snapshots(seq, run, body)                the scheduler's dump after event `seq`, under the setting of `run`

Invariants: `seq` counts from 1 without gaps; an event and its actions are one row, so neither exists alone; a batch is
one transaction, durable (fsync) when `append` returns; `time_ns` never decreases; one process writes (an flock on the
folder's `lock`, held until `close`, released by the kernel whatever kills the process), any number may read.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tierline.core.actions import Action, PreemptJob, RecordEnd, RecordRefusal, StartJob, StopJob
from tierline.core.errors import StateUnusable
from tierline.core.events import (
    Event,
    JobExited,
    JobHeld,
    JobReleased,
    JobStarted,
    JobSubmitted,
    ProgressReported,
    SlowdownSeen,
    StopRequested,
)
from tierline.runtime.codec import encode_actions, encode_event
from tierline.runtime.table import EventTable, check_schema, connect

__all__ = ["EventStore", "EventTable", "holder"]

KEPT_SNAPSHOTS = 2
SNAPSHOT_BYTES_PER_EVENT = 2_000  # one of many jobs is dear and waits for more events: its cost per event is bounded


class EventStore:
    """The writing side: a `Journal`. One at a time for a state folder."""

    def __init__(self, root: Path, *, snapshot_every: int = 2_000) -> None:
        """Take the folder (created 0700 where absent). Raises `StateUnusable` when another daemon has it, `StateTooNew`
        when a newer Tierline wrote it; then nothing was touched."""
        self._path = root / "events.db"
        self._snapshot_every = snapshot_every
        self._dump: Callable[[], dict[str, Any]] | None = None
        self._run = 0
        self._broken: str = ""
        self._write = threading.Lock()
        self._folder_lock = _take(root)
        try:
            self._db = connect(self._path, writable=True)
            try:
                check_schema(self._db, self._path, create=True)
                self._seq = int(self._db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])
                self._snapshot_seq = self._seq
                self._snapshot_bytes = 0
                self.table = EventTable(self._path)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            os.close(self._folder_lock)
            raise StateUnusable(f"The event table '{self._path}' cannot be used: {error}.") from error
        except BaseException:
            os.close(self._folder_lock)
            raise

    def __enter__(self) -> EventStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def seq(self) -> int:
        """Number of the newest event."""
        return self._seq

    @property
    def broken(self) -> str:
        """Why nothing can be recorded any more; "" while all is well."""
        return self._broken

    def begin_run(self, time_ns: int, version: str, setting: str, dump: Callable[[], dict[str, Any]]) -> None:
        """Note that a scheduler under `setting` goes on from here; `dump` answers its state whenever a snapshot is due.
        Called after recovery and before the first `append`; writes a snapshot, so that recovery starts here."""
        with self._write, self._guard("begin a run"):
            self._dump = dump
            self._db.execute("BEGIN IMMEDIATE")
            cursor = self._db.execute(
                "INSERT INTO runs(after_seq, time_ns, version, setting) VALUES (?, ?, ?, ?)",
                (self._seq, time_ns, version, setting),
            )
            self._run = int(cursor.lastrowid or 0)
            self._write_snapshot(self._seq)
            self._db.execute("COMMIT")

    def append(self, entries: Sequence[tuple[int, Event, Sequence[Action]]]) -> None:
        """Record a batch in one transaction. Raises `StateUnusable` when it cannot be written; from then on every call
        does, for the scheduler has moved past the table and the daemon must end."""
        with self._write, self._guard("record events"):
            seq = self._seq
            self._db.execute("BEGIN IMMEDIATE")
            for time_ns, event, actions in entries:
                seq += 1
                kind, body = encode_event(event)
                row = (seq, time_ns, kind, body, encode_actions(actions))
                self._db.execute("INSERT INTO events(seq, time_ns, kind, body, actions) VALUES (?, ?, ?, ?, ?)", row)
                marks = sorted({*_event_mentions(event), *_action_mentions(actions)})
                self._db.executemany(
                    "INSERT INTO mentions(job_id, what, seq) VALUES (?, ?, ?)", [(*mark, seq) for mark in marks]
                )
            if seq - self._snapshot_seq >= max(self._snapshot_every, self._snapshot_bytes // SNAPSHOT_BYTES_PER_EVENT):
                self._write_snapshot(seq)
            self._db.execute("COMMIT")
            self._seq = seq

    def abandon(self, reason: str) -> None:
        """Write nothing more, no snapshot either: the scheduler's state is not what the table says."""
        with self._write:
            self._broken = self._broken or reason

    def close(self) -> None:
        """Write a last snapshot if all is well, and let the folder go. May be called twice."""
        with self._write:
            if self._folder_lock < 0:
                return
            try:
                if self._dump is not None and not self._broken and self._snapshot_seq < self._seq:
                    with self._guard("write a snapshot"):
                        self._db.execute("BEGIN IMMEDIATE")
                        self._write_snapshot(self._seq)
                        self._db.execute("COMMIT")
            finally:
                self.table.close()
                self._db.close()
                os.close(self._folder_lock)
                self._folder_lock = -1

    def _write_snapshot(self, seq: int) -> None:
        """Within the caller's transaction, so that a batch and its snapshot are written together or not at all."""
        assert self._dump is not None, "a run begins before its events"
        body = json.dumps(self._dump(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        self._db.execute("INSERT OR REPLACE INTO snapshots(seq, run, body) VALUES (?, ?, ?)", (seq, self._run, body))
        self._db.execute(
            "DELETE FROM snapshots WHERE (seq, run) NOT IN "
            "(SELECT seq, run FROM snapshots ORDER BY seq DESC, run DESC LIMIT ?)",
            (KEPT_SNAPSHOTS,),
        )
        self._snapshot_seq, self._snapshot_bytes = seq, len(body)

    @contextlib.contextmanager
    def _guard(self, what: str) -> Iterator[None]:
        """Turns any failure to write into `StateUnusable`, for good: see `append`."""
        if self._broken:
            raise StateUnusable(self._broken)
        try:
            yield
        except BaseException as error:
            raise self._fail(what, error) from error

    def _fail(self, what: str, error: BaseException) -> StateUnusable:
        if not self._broken:
            if self._db.in_transaction:
                with contextlib.suppress(sqlite3.Error):  # closing the connection, which is next, rolls back too
                    self._db.execute("ROLLBACK")
            hint = " Make room on that disk and start the daemon again." if "full" in str(error) else ""
            self._broken = (
                f"The daemon could not {what} in '{self._path}' ({error}) and has to end; "
                f"what was accepted before is kept.{hint}"
            )
        return StateUnusable(self._broken)


def holder(root: Path) -> int | None:
    """The process that has the state folder now; None when none has. 0 when it is about to write its number."""
    try:
        descriptor = os.open(root / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        text = os.read(descriptor, 32).decode("ascii", "replace").strip()
        return int(text) if text.isdecimal() else 0
    finally:
        os.close(descriptor)
    return None


def _take(root: Path) -> int:
    """Hold the folder's lock; returns its descriptor."""
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        # Never given to children: a supervisor that outlives the daemon must not keep the folder taken.
        descriptor = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnusable(f"The state folder '{root}' cannot be used: {error.strerror}.") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(descriptor, 32).decode("ascii", "replace").strip()
        os.close(descriptor)
        who = f" (process {owner})" if owner else ""
        raise StateUnusable(
            f"Another daemon{who} already has the state folder '{root}': use that one, end it with `tierline down`, or "
            "choose another --state."
        ) from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, str(os.getpid()).encode(), 0)
    return descriptor


def _event_mentions(event: Event) -> Iterable[tuple[str, str]]:
    if isinstance(event, JobSubmitted):
        return ((event.job.job_id, "event"),)
    if isinstance(event, ProgressReported):
        return ((report.job_id, "report") for report in event.reports)
    if isinstance(event, (JobHeld, JobReleased, StopRequested, JobStarted, JobExited, SlowdownSeen)):
        return ((event.job_id, "event"),)
    return ()


def _action_mentions(actions: Sequence[Action]) -> Iterable[tuple[str, str]]:
    for action in actions:
        if isinstance(action, (StartJob, PreemptJob, StopJob, RecordRefusal, RecordEnd)):
            yield action.job_id, "action"
