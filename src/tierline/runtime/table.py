"""The reading side of the event table, and its schema. The tables and their invariants are told in `store.py`."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tierline.core.errors import NotFound, StateTooNew, StateUnusable

SCHEMA = 1

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
        self._db = connect(path, writable=False)
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


def connect(path: Path, *, writable: bool) -> sqlite3.Connection:
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
