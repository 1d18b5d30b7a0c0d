"""The event table: one transaction a batch, one writer, no schema of the future, and no silence when it cannot write."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tierline.core.actions import Action, SetTimer, StartJob
from tierline.core.errors import NotFound, StateTooNew, StateUnusable
from tierline.core.events import Event, JobStarted, JobSubmitted, ProgressReported, StopRequested, TimerFired
from tierline.core.nouns import Job, Report
from tierline.runtime.codec import decode_event
from tierline.runtime.store import SNAPSHOT_BYTES_PER_EVENT, EventStore, EventTable, holder


def opened(root: Path, *, snapshot_every: int = 1000, dump: dict[str, Any] | None = None) -> EventStore:
    store = EventStore(root, snapshot_every=snapshot_every)
    store.begin_run(1, "0.1", "{}", lambda: {"n": 1} if dump is None else dict(dump))
    return store


def entry(event: Event, *actions: Action, at: int = 5) -> tuple[int, Event, tuple[Action, ...]]:
    return at, event, actions


def test_what_was_appended_is_there_for_another_reader(tmp_path: Path) -> None:
    start = StartJob("a", 1, ("cpu0",), False, "because")
    with opened(tmp_path) as store:
        store.append([entry(JobSubmitted(Job("a")), SetTimer("fill", 7)), entry(TimerFired("fill"), start, at=7)])
        table = EventTable(tmp_path / "events.db")
        rows = list(table.events())
        assert [(row.seq, row.time_ns, row.kind) for row in rows] == [(1, 5, "JobSubmitted"), (2, 7, "TimerFired")]
        assert decode_event(rows[0].kind, rows[0].body) == JobSubmitted(Job("a"))
        assert table.last() == (2, 7)
        assert table.submitted() == 1
        assert [row.seq for row in table.page(1, 10)] == [2]
        table.close()


def test_mentions_lead_from_a_job_to_its_events(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        store.append([entry(JobSubmitted(Job(name))) for name in ("a", "b")])
        store.append([entry(TimerFired("fill"), StartJob("b", 1, (), False, ""), StartJob("a", 1, (), False, ""))])
        store.append([entry(ProgressReported((Report("a", 1, 0.5, 5), Report("a", 2, 0.4, 6))))])
        store.append([entry(JobStarted("a", 1))])
        assert [row.seq for row in store.table.about("a", "event", "action")] == [1, 3, 5]
        assert [row.seq for row in store.table.about("a", "report")] == [4]
        assert [row.seq for row in store.table.about("b", "event", "action", "report")] == [2, 3]
        assert store.table.about("c", "event", "action", "report") == []


def test_a_batch_is_all_or_nothing(tmp_path: Path) -> None:
    store = opened(tmp_path)
    bad = entry(ProgressReported((Report("a", 1, float("nan"), 5),)))  # has no JSON
    with pytest.raises(StateUnusable):
        store.append([entry(JobSubmitted(Job("a"))), bad])
    store.close()
    with opened(tmp_path) as again:
        assert again.table.last() == (0, 0)
        assert again.table.about("a", "event") == []


def test_after_a_failure_nothing_more_is_taken(tmp_path: Path) -> None:
    store = opened(tmp_path)
    with pytest.raises(StateUnusable):
        store.append([entry(ProgressReported((Report("a", 1, float("inf"), 5),)))])
    with pytest.raises(StateUnusable):
        store.append([entry(JobSubmitted(Job("b")))])
    assert store.broken
    store.close()
    with opened(tmp_path) as again:
        assert again.seq == 0


def test_a_full_disk_ends_it_with_one_sentence_and_keeps_what_was_accepted(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.append([entry(JobSubmitted(Job("kept")))])
    store._db.execute("PRAGMA max_page_count = 20")  # SQLite's own full disk: SQLITE_FULL

    def fill() -> None:
        for number in range(10_000):
            store.append([entry(JobSubmitted(Job(f"j{number}", env=(("X", "y" * 4000),))))])

    with pytest.raises(StateUnusable, match=r"full.*what was accepted before is kept\. Make room"):
        fill()
    accepted = store.seq
    store.close()
    with opened(tmp_path) as again:
        assert again.seq == accepted >= 1
        assert [row.seq for row in again.table.about("kept", "event")] == [1]


def test_a_second_writer_is_told_who_has_the_folder(tmp_path: Path) -> None:
    with opened(tmp_path):
        assert holder(tmp_path) == os.getpid()
        with pytest.raises(StateUnusable, match=rf"process {os.getpid()}\) already has the state folder"):
            EventStore(tmp_path)
    assert holder(tmp_path) is None
    opened(tmp_path).close()


def test_the_lock_of_a_killed_writer_is_free(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from tierline.runtime.store import EventStore\n"
        "store = EventStore(Path(sys.argv[1])); print('have it', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"have it\n"
        with pytest.raises(StateUnusable, match=f"process {other.pid}"):
            EventStore(tmp_path)
        other.send_signal(signal.SIGKILL)
    opened(tmp_path).close()


def test_a_newer_schema_is_left_alone(tmp_path: Path) -> None:
    opened(tmp_path).close()
    db = sqlite3.connect(tmp_path / "events.db")
    db.execute("UPDATE meta SET value = '2' WHERE key = 'schema'")
    db.commit()
    db.close()
    before = (tmp_path / "events.db").read_bytes()
    with pytest.raises(StateTooNew, match="schema 2, written by a newer Tierline"):
        EventStore(tmp_path)
    with pytest.raises(StateTooNew):
        EventTable(tmp_path / "events.db")
    assert (tmp_path / "events.db").read_bytes() == before
    assert holder(tmp_path) is None


@pytest.mark.parametrize("content", [b"this is no database, though it is long enough to have a header" * 100, None])
def test_a_foreign_file_is_left_alone(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "events.db"
    if content is not None:
        path.write_bytes(content)
    else:
        db = sqlite3.connect(path)
        db.execute("CREATE TABLE other(x)")
        db.commit()
        db.close()
    before = path.read_bytes()
    with pytest.raises(StateUnusable):
        EventStore(tmp_path)
    assert path.read_bytes() == before
    assert holder(tmp_path) is None


def test_no_folder_is_made_by_looking(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no event table"):
        EventTable(tmp_path / "nothing" / "events.db")
    assert list(tmp_path.iterdir()) == []
    assert holder(tmp_path / "nothing") is None


def test_snapshots_come_every_so_many_events_and_at_the_end(tmp_path: Path) -> None:
    state = {"n": 0}
    store = EventStore(tmp_path, snapshot_every=3)
    store.begin_run(1, "0.1", "{}", lambda: dict(state))
    for number in range(1, 8):
        state["n"] = number
        store.append([entry(JobSubmitted(Job(f"j{number}")))])
    snapshot = store.table.snapshot()
    assert snapshot is not None
    assert (snapshot.seq, snapshot.body) == (6, '{"n":6}')
    store.close()
    table = EventTable(tmp_path / "events.db")
    last = table.snapshot()
    assert last is not None
    assert (last.seq, last.body) == (7, '{"n":7}')
    table.close()
    db = sqlite3.connect(tmp_path / "events.db")
    assert db.execute("SELECT count(*) FROM snapshots").fetchone()[0] == 2
    db.close()


def test_only_the_owner_can_read_the_table(tmp_path: Path) -> None:
    root = tmp_path / "deep" / "state"
    with opened(root) as store:
        store.append([entry(JobSubmitted(Job("a")))])
        for name in ("events.db", "events.db-wal", "lock"):
            assert stat.S_IMODE((root / name).stat().st_mode) == 0o600
        assert stat.S_IMODE(root.stat().st_mode) == 0o700


def test_a_snapshot_of_many_jobs_waits_for_more_events(tmp_path: Path) -> None:
    """Else the cost of an event would grow with the jobs that were ever there."""
    with EventStore(tmp_path, snapshot_every=2) as store:
        store.begin_run(0, "0.1", "{}", lambda: {"jobs": "x" * (10 * SNAPSHOT_BYTES_PER_EVENT)})
        seen = []
        for number in range(25):
            store.append([(number, StopRequested("j", "ann"), [])])
            snapshot = store.table.snapshot()
            assert snapshot is not None
            seen.append(snapshot.seq)
    assert sorted(set(seen)) == [0, 10, 20]
