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
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tierline.core.actions import Action, PreemptJob, RecordEnd, RecordRefusal, StartJob, StopJob
from tierline.core.errors import NotFound, StateTooNew, StateUnusable
from tierline.core.events import (
    Event,
    JobExited,
    JobHeld,
    JobReleased,
    JobStarted,
    JobSubmitted,
    ProgressReported,
    StopRequested,
)
from tierline.runtime.codec import encode_actions, encode_event

SCHEMA = 1
KEPT_SNAPSHOTS = 2

_TABLES = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE runs(run INTEGER PRIMARY KEY, after_seq INTEGER NOT NULL, time_ns INTEGER NOT NULL, version TEXT NOT NULL,
                  setting TEXT NOT NULL);
CREATE TABLE events(seq INTEGER PRIMARY KEY, time_ns INTEGER NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL,
                    actions TEXT NOT NULL);
CREATE TABLE mentions(job_id TEXT NOT NULL, what TEXT NOT NULL, seq INTEGER NOT NULL,
                      PRIMARY KEY(job_id, what, seq)) WITHOUT ROWID;
CREATE TABLE snapshots(seq INTEGER NOT NULL, run INTEGER NOT NULL, body TEXT NOT NULL,
                       PRIMARY KEY(seq, run)) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One event as it was recorded; `body` and `actions` are JSON text (`codec.py`)."""

    seq: int
    time_ns: int
    kind: str
    body: str
    actions: str


@dataclass(frozen=True, slots=True)
class Run:
    """A daemon's life: the events after `after_seq` were handled under `setting` (JSON) by Tierline `version`."""

    run: int
    after_seq: int
    time_ns: int
    version: str
    setting: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A scheduler's dump (JSON) after event `seq`, under the setting of `run`."""

    seq: int
    run: int
    body: str


class EventTable:
    """The reading side. Usable from any thread, also beside a daemon that writes."""

    def __init__(self, path: Path) -> None:
        """Raises `NotFound`, `StateTooNew` or `StateUnusable`; nothing is created or changed."""
        if not path.is_file():
            raise NotFound(f"'{path.parent}' holds no event table: it is no state folder of Tierline.")
        self._lock = threading.Lock()
        self._db = _connect(path, writable=False)
        try:
            check_schema(self._db, path)
        except BaseException:
            self._db.close()
            raise

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def runs(self) -> list[Run]:
        return [
            Run(*row) for row in self._all("SELECT run, after_seq, time_ns, version, setting FROM runs ORDER BY run")
        ]

    def snapshot(self) -> Snapshot | None:
        """The newest one."""
        rows = self._all("SELECT seq, run, body FROM snapshots ORDER BY seq DESC, run DESC LIMIT 1")
        return Snapshot(*rows[0]) if rows else None

    def last(self) -> tuple[int, int]:
        """(seq, time_ns) of the newest event; (0, 0) when there is none."""
        rows = self._all("SELECT seq, time_ns FROM events ORDER BY seq DESC LIMIT 1")
        return (int(rows[0][0]), int(rows[0][1])) if rows else (0, 0)

    def page(self, after: int, limit: int) -> list[Row]:
        """Up to `limit` events with a seq above `after`, oldest first."""
        sql = "SELECT seq, time_ns, kind, body, actions FROM events WHERE seq > ? ORDER BY seq LIMIT ?"
        return [Row(*row) for row in self._all(sql, after, limit)]

    def events(self, after: int = 0, page: int = 2000) -> Iterator[Row]:
        """All events with a seq above `after`, oldest first, read in pages."""
        while rows := self.page(after, page):
            yield from rows
            after = rows[-1].seq

    def about(self, job_id: str, *what: str) -> list[Row]:
        """The events that concern a job, oldest first; `what` of 'event', 'action', 'report'."""
        marks = ",".join("?" * len(what))
        sql = (
            "SELECT seq, time_ns, kind, body, actions FROM events WHERE seq IN "
            f"(SELECT seq FROM mentions WHERE job_id = ? AND what IN ({marks})) ORDER BY seq"
        )
        return [Row(*row) for row in self._all(sql, job_id, *what)]

    def submitted(self) -> int:
        """How many jobs were ever accepted."""
        return int(self._all("SELECT count(*) FROM events WHERE kind = 'JobSubmitted'")[0][0])

    def _all(self, sql: str, *arguments: object) -> list[Any]:
        with self._lock:
            try:
                return self._db.execute(sql, arguments).fetchall()
            except sqlite3.Error as error:
                raise StateUnusable(f"The event table cannot be read: {error}.") from error


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
            self._db = _connect(self._path, writable=True)
            try:
                check_schema(self._db, self._path, create=True)
                self._seq = int(self._db.execute("SELECT coalesce(max(seq), 0) FROM events").fetchone()[0])
                self._snapshot_seq = self._seq
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
            if seq - self._snapshot_seq >= self._snapshot_every:
                self._write_snapshot(seq)
            self._db.execute("COMMIT")
            self._seq = seq

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
        self._snapshot_seq = seq

    def _guard(self, what: str) -> _Guard:
        return _Guard(self, what)

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


class _Guard:
    """Turns any failure to write into `StateUnusable`, for good: see `EventStore.append`."""

    def __init__(self, store: EventStore, what: str) -> None:
        self._store = store
        self._what = what

    def __enter__(self) -> None:
        if self._store._broken:
            raise StateUnusable(self._store._broken)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            raise self._store._fail(self._what, error) from error


def check_schema(db: sqlite3.Connection, path: Path, *, create: bool = False) -> None:
    """Raises `StateTooNew` for the schema of a newer version and `StateUnusable` for a file that is no event table."""
    try:
        has_meta = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'meta'").fetchone()[0]
        if not has_meta and create and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            db.execute("BEGIN EXCLUSIVE")
            for statement in _TABLES.split(";"):
                db.execute(statement)
            rows = [("schema", str(SCHEMA)), ("created_ns", str(time.time_ns()))]
            db.executemany("INSERT INTO meta(key, value) VALUES (?, ?)", rows)
            db.execute("COMMIT")
            return
        found = db.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone() if has_meta else None
    except sqlite3.Error as error:
        raise StateUnusable(f"The event table '{path}' cannot be used: {error}.") from error
    if found is None:
        raise StateUnusable(f"'{path}' is no event table of Tierline.")
    if int(found[0]) > SCHEMA:
        raise StateTooNew(
            f"'{path}' has schema {found[0]}, written by a newer Tierline; this one reads up to {SCHEMA}. "
            "Nothing was touched: upgrade Tierline or choose another --state."
        )


def _connect(path: Path, *, writable: bool) -> sqlite3.Connection:
    try:
        if writable:  # made here for its mode: jobs' environments are in it; SQLite gives -wal and -shm the same one
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        db = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    except (sqlite3.Error, OSError) as error:
        raise StateUnusable(f"The event table '{path}' cannot be opened: {error}.") from error
    try:
        if writable:
            if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
                check_schema(db, path)  # before the first pragma that writes
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
        else:
            db.execute("PRAGMA query_only = 1")
    except sqlite3.Error as error:
        db.close()
        raise StateUnusable(f"The event table '{path}' cannot be used: {error}.") from error
    except BaseException:
        db.close()
        raise
    return db


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
    if isinstance(event, (JobHeld, JobReleased, StopRequested, JobStarted, JobExited)):
        return ((event.job_id, "event"),)
    return ()


def _action_mentions(actions: Sequence[Action]) -> Iterable[tuple[str, str]]:
    for action in actions:
        if isinstance(action, (StartJob, PreemptJob, StopJob, RecordRefusal, RecordEnd)):
            yield action.job_id, "action"
