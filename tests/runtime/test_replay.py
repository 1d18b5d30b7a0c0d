"""Recovery is a fold: from the start, from any snapshot, over a change of policy; and it notices what it cannot repeat."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import pytest

from tierline.clock import SimClock
from tierline.config import Setting, build_recorded, hand_over
from tierline.core.actions import Action, PreemptJob, StartJob, StopJob
from tierline.core.errors import StateUnusable
from tierline.core.events import (
    Event,
    JobExited,
    JobHeld,
    JobReleased,
    JobStarted,
    JobSubmitted,
    NodeJoined,
    ProgressReported,
    SharesSet,
    StopRequested,
    SweepDeclared,
    TimerFired,
)
from tierline.core.nouns import NS_PER_S, Device, Job, Node, Report, Sweep
from tierline.runtime.driver import Driver
from tierline.runtime.replay import effects, fold, recover
from tierline.runtime.store import EventStore, EventTable
from tierline.schedulers.jobs import JobScheduler


def setting(policy: str = "explsched", fair_by: str = "job") -> str:
    value = Setting(policy, 2 * NS_PER_S, NS_PER_S, 20_000_000, 7, fair_by)  # type: ignore[arg-type]
    return msgspec.json.encode(value).decode()


class Trainings:
    """A backend in virtual time: every job reports a falling loss each half second, and leaves when it is asked to."""

    def __init__(self, clock: SimClock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._running: dict[str, int] = {}
        self._step: dict[str, int] = {}
        self._offset = 0

    def execute(self, action: Action) -> None:
        now = self._clock.now_ns()
        if isinstance(action, StartJob):
            self._running[action.job_id] = action.attempt
            self._clock.post(JobStarted(action.job_id, action.attempt), at_ns=now + 50_000_000)
            for tick in range(1, self._rng.randint(2, 14)):
                self._report(action, now + tick * NS_PER_S // 2)
            end = now + 7 * NS_PER_S
            outcome = self._rng.choice(["completed", "completed", "failed", "lost"])
            self._clock.post(JobExited(action.job_id, action.attempt, outcome, "by itself", 0), at_ns=end)  # type: ignore[arg-type]
        elif isinstance(action, PreemptJob | StopJob):
            outcome = "preempted" if isinstance(action, PreemptJob) else "stopped"
            event = JobExited(action.job_id, action.attempt, outcome, "as asked")  # type: ignore[arg-type]
            self._clock.post(event, at_ns=now + 200_000_000)

    def _report(self, action: StartJob, at_ns: int) -> None:
        step = self._step[action.job_id] = self._step.get(action.job_id, 0) + 1
        self._offset += 40
        loss = None if self._rng.random() < 0.05 else 1.0 / step + self._rng.random() * 0.1
        report = Report(action.job_id, step, loss, at_ns, action.attempt, self._offset)
        self._clock.post(ProgressReported((report,)), at_ns=at_ns)

    def close(self) -> None:
        pass


class Batches:
    """The event table behind it, written twenty entries at a time: a disk that is slow to sync tells us nothing here."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._entries: list[tuple[int, Event, Sequence[Action]]] = []

    def append(self, entries: Sequence[tuple[int, Event, Sequence[Action]]]) -> None:
        self._entries += entries
        if len(self._entries) >= 20:
            self.flush()

    def flush(self) -> None:
        self._store.append(self._entries)
        self._entries = []


def users_events(rng: random.Random) -> list[tuple[int, Event]]:
    """(when, what) of users: a sweep, jobs, holds, stops, shares."""
    events: list[tuple[int, Event]] = [(1, SweepDeclared(Sweep("s", "ann", chance=1.2)))]
    for number in range(24):
        job = Job(
            f"j{number}", rng.choice(["ann", "bob"]), sweep="s" if number % 2 else "", max_gpus=rng.choice([1, 1, 2])
        )
        events.append((rng.randrange(20 * NS_PER_S), JobSubmitted(job)))
    for number in (3, 5, 8):
        events.append((20 * NS_PER_S + number, JobHeld(f"j{number}", "ann")))
        events.append((24 * NS_PER_S + number, JobReleased(f"j{number}", "ann")))
    events += [(22 * NS_PER_S, StopRequested("j9", "bob")), (23 * NS_PER_S, SharesSet((("bob", 3.0),)))]
    return sorted(events, key=lambda pair: pair[0])


def record(root: Path, *, policy: str = "explsched", seed: int = 1, snapshot_every: int = 10**6) -> JobScheduler:
    """Run a cluster of four devices to its end with the event table as its journal; the state at the end."""
    rng, clock = random.Random(seed), SimClock()
    scheduler = build_recorded(setting(policy))
    with EventStore(root, snapshot_every=snapshot_every) as store:
        store.begin_run(0, "0.1", setting(policy), scheduler.dump)
        journal = Batches(store)
        driver = Driver(scheduler, Trainings(clock, rng), clock, journal)
        driver.submit([NodeJoined(Node("n", tuple(Device(f"cpu{i}", "cpu") for i in range(4))))])
        for at_ns, event in users_events(rng):
            clock.post(event, at_ns=at_ns)
        driver.run(until=lambda now_ns: now_ns > 120 * NS_PER_S)
        journal.flush()
        assert store.seq > 100
    return scheduler


def opened(root: Path, use: Callable[[EventTable], None]) -> None:
    table = EventTable(root / "events.db")
    try:
        use(table)
    finally:
        table.close()


def alter(root: Path, sql: str, *arguments: object) -> None:
    db = sqlite3.connect(root / "events.db")
    assert db.execute(sql, arguments).rowcount >= 1
    db.commit()
    db.close()


def state(scheduler: JobScheduler) -> str:
    return msgspec.json.encode(scheduler.dump(), order="sorted").decode()


@pytest.mark.parametrize("policy", ["explsched", "fifo", "fair", "las", "gandiva", "asha"])
def test_the_fold_from_the_start_repeats_every_action_and_the_state(tmp_path: Path, policy: str) -> None:
    live = record(tmp_path, policy=policy)

    def look(table: EventTable) -> None:
        result = fold(table, build_recorded, hand_over, from_start=True)
        assert result is not None
        assert (result.differences, result.first) == (0, None)
        assert (result.events, result.last_seq) == (table.last()[0], table.last()[0])
        assert result.actions > 20
        assert state(result.scheduler) == state(live)

    opened(tmp_path, look)


@pytest.mark.parametrize("seed", range(4))
def test_recovery_from_a_snapshot_in_the_middle_gives_the_same_state(tmp_path: Path, seed: int) -> None:
    live = record(tmp_path, seed=seed, snapshot_every=37 + 11 * seed)
    db = sqlite3.connect(tmp_path / "events.db")
    db.execute("DELETE FROM snapshots WHERE seq = (SELECT max(seq) FROM events)")  # as if it had been killed
    db.commit()
    db.close()

    def look(table: EventTable) -> None:
        result = recover(table, build_recorded, hand_over)
        assert result is not None
        assert result.first is None
        assert 0 < result.start_seq < result.last_seq
        assert result.events == result.last_seq - result.start_seq
        assert state(result.scheduler) == state(live)

    opened(tmp_path, look)


def test_a_changed_action_is_found_and_recovery_refuses(tmp_path: Path) -> None:
    record(tmp_path)
    alter(tmp_path, "DELETE FROM snapshots")
    alter(
        tmp_path,
        "UPDATE events SET actions = replace(actions, '\"cpu0\"', '\"cpu3\"') WHERE seq = "
        "(SELECT min(seq) FROM events WHERE actions LIKE '%StartJob%cpu0%')",
    )

    def look(table: EventTable) -> None:
        result = fold(table, build_recorded, hand_over, from_start=True)
        assert result is not None
        assert result.first is not None
        assert result.first.effect
        assert "cpu3" in result.first.sentence()
        with pytest.raises(StateUnusable, match=r"cannot be repeated: event \d+ .*Tierline 0\.1: start that version"):
            recover(table, build_recorded, hand_over)

    opened(tmp_path, look)


def test_another_reason_is_a_difference_but_no_obstacle(tmp_path: Path) -> None:
    live = record(tmp_path)
    alter(tmp_path, "DELETE FROM snapshots")
    alter(
        tmp_path,
        'UPDATE events SET actions = replace(actions, \'"reason":"\', \'"reason":"once \') WHERE seq = '
        "(SELECT min(seq) FROM events WHERE actions LIKE '%StartJob%')",
    )

    def look(table: EventTable) -> None:
        result = recover(table, build_recorded, hand_over)
        assert result is not None
        assert result.first is not None
        assert not result.first.effect
        assert (result.differences, result.first_effect) == (1, None)
        assert state(result.scheduler) == state(live)

    opened(tmp_path, look)


def test_a_change_of_policy_is_repeated_where_it_happened(tmp_path: Path) -> None:
    record(tmp_path, policy="gandiva")
    with EventStore(tmp_path) as store:
        before = recover(store.table, build_recorded, hand_over)
        assert before is not None
        assert before.setting == setting("gandiva")
        after = hand_over(before.setting, before.scheduler, setting("explsched", "user"))
        store.begin_run(0, "0.1", setting("explsched", "user"), after.dump)
        now = before.last_time_ns + 1
        for number in range(6):
            event = JobSubmitted(Job(f"late{number}", "ann"))
            store.append([(now, event, after.handle(now, event))])
        for timer in sorted(after.pending_timers(), key=lambda timer: timer.at_ns):
            fired = TimerFired(timer.name)
            store.append([(timer.at_ns, fired, after.handle(timer.at_ns, fired))])

    def look(table: EventTable) -> None:
        result = fold(table, build_recorded, hand_over, from_start=True)
        assert result is not None
        assert result.first is None
        assert result.setting == setting("explsched", "user")
        assert state(result.scheduler) == state(after)

    opened(tmp_path, look)


def test_a_gap_is_damage(tmp_path: Path) -> None:
    record(tmp_path)
    alter(tmp_path, "DELETE FROM events WHERE seq = 50")

    def look(table: EventTable) -> None:
        with pytest.raises(StateUnusable, match="gap before event 51"):
            fold(table, build_recorded, hand_over, from_start=True)

    opened(tmp_path, look)


def test_a_folder_where_no_daemon_ran_has_no_state(tmp_path: Path) -> None:
    EventStore(tmp_path).close()

    def look(table: EventTable) -> None:
        assert fold(table, build_recorded, hand_over) is None

    opened(tmp_path, look)


def test_effects_leave_out_notes_only() -> None:
    one = StartJob("a", 1, ("cpu0",), False, "x", 0.5, 0.1)
    assert effects([one]) == effects([StartJob("a", 1, ("cpu0",), False, "y", 0.6, 0.2)])
    for other in (
        StartJob("b", 1, ("cpu0",), False, "x"),
        StartJob("a", 2, ("cpu0",), False, "x"),
        StartJob("a", 1, ("cpu1",), False, "x"),
        StartJob("a", 1, ("cpu0",), True, "x"),
        PreemptJob("a", 1, "x"),
    ):
        assert effects([one]) != effects([other])
