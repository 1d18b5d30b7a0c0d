"""The simulated cluster, driven by the real loop and a first-come first-served scheduler of forty lines."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from tierline.backends.jobs.sim import SimBackend, SimOptions, uniform_nodes
from tierline.clock import SimClock
from tierline.core.actions import Action, PreemptJob, SetTimer, StartJob, StopJob
from tierline.core.errors import InvalidInput
from tierline.core.events import (
    Event,
    JobExited,
    JobStarted,
    JobSubmitted,
    NodeJoined,
    NodeLost,
    ProgressReported,
    StopRequested,
    TimerFired,
)
from tierline.core.nouns import NS_PER_S, Device, Job, Node, Report, Sweep
from tierline.perf.truth import Arrival, Normaliser, Record, Truth, Workload
from tierline.runtime.driver import Driver


@dataclass
class FirstComeScheduler:
    """Starts jobs in order of arrival on free devices; preempts what `preempt_at` says; keeps what it was told."""

    preempt_at: dict[int, str] = field(default_factory=dict)  # seconds -> job
    free: list[str] = field(default_factory=list)
    waiting: deque[str] = field(default_factory=deque)
    jobs: dict[str, Job] = field(default_factory=dict)
    held: dict[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    attempts: dict[str, int] = field(default_factory=dict)
    log: list[tuple[float, Event]] = field(default_factory=list)

    def check(self, events: Sequence[Event]) -> None:
        pass

    def handle(self, now_ns: int, event: Event) -> list[Action]:
        self.log.append((now_ns / NS_PER_S, event))
        actions: list[Action] = []
        match event:
            case NodeJoined(node):
                if not self.jobs:
                    actions += [SetTimer("quantum", s * NS_PER_S) for s in self.preempt_at]
                self.free += [d.device_id for d in node.devices]
                actions.append(SetTimer("fill", now_ns))
            case NodeLost(name):
                self.free = [d for d in self.free if not d.startswith(f"{name}/")]
            case JobSubmitted(job):
                self.jobs[job.job_id] = job
                self.waiting.append(job.job_id)
            case StopRequested(job_id):
                actions.append(StopJob(job_id, self.attempts[job_id], "its user"))
            case TimerFired("quantum"):
                job_id = self.preempt_at[now_ns // NS_PER_S]
                actions.append(PreemptJob(job_id, self.attempts[job_id], "test"))
            case JobExited(job_id, _, outcome):
                devices = self.held.pop(job_id)[1]
                self.free += [d for d in devices if outcome != "lost"]  # a lost node's devices come back with it
                if outcome in ("preempted", "lost"):
                    self.waiting.append(job_id)
                actions.append(SetTimer("fill", now_ns))
        if isinstance(event, TimerFired | JobSubmitted):
            while self.waiting and len(self.free) >= self.jobs[self.waiting[0]].min_gpus:
                job_id = self.waiting.popleft()
                size = self.jobs[job_id].min_gpus
                devices = tuple(self.free[:size])
                del self.free[:size]
                self.attempts[job_id] = attempt = self.attempts.get(job_id, 0) + 1
                self.held[job_id] = (attempt, devices)
                actions.append(StartJob(job_id, attempt, devices, attempt > 1, "first come"))
        return actions

    def of(self, kind: type[Event]) -> list[tuple[float, Event]]:
        return [(at, event) for at, event in self.log if isinstance(event, kind)]

    def reports(self) -> list[Report]:
        return [r for _, e in self.log if isinstance(e, ProgressReported) for r in e.reports]


def workload(*entries: tuple[float, Job, Truth]) -> Workload:
    sweeps = tuple(dict.fromkeys(job.sweep for _, job, _ in entries))
    return Workload(
        name="test",
        recipe=None,
        sweeps=tuple(Sweep(s, chance=1.0) for s in sweeps),
        normalisers=tuple(Normaliser(1.0, 0.0) for _ in sweeps),
        entries=tuple(Arrival(round(at * NS_PER_S), job, truth) for at, job, truth in entries),
    )


def course(
    duration_s: float, points: int = 10, stop: float = 1.0, fail: float = 1.0, losses: list[float] | None = None
) -> Truth:
    values = np.linspace(1.0, 0.0, points + 1) if losses is None else np.array(losses)
    return Truth(np.arange(len(values), dtype=np.int64), values, duration_s, stop, fail)


def simulate(
    load: Workload, scheduler: FirstComeScheduler, gpus: int = 1, **options: object
) -> tuple[Record, FirstComeScheduler]:
    clock = SimClock()
    nodes = options.pop("nodes", uniform_nodes(gpus, gpus_per_node=1))
    backend = SimBackend(clock, load, SimOptions(nodes=nodes, **options))  # type: ignore[arg-type]
    Driver(scheduler, backend, clock).run()
    return backend.record(), scheduler


def ends(scheduler: FirstComeScheduler) -> list[tuple[float, str, str]]:
    return [(at, e.job_id, e.outcome) for at, e in scheduler.of(JobExited) if isinstance(e, JobExited)]


def test_first_start_costs_nothing_and_reports_carry_exact_times() -> None:
    record, s = simulate(workload((5, Job("a"), course(100))), FirstComeScheduler())
    assert ends(s) == [(105, "a", "completed")]
    assert [(r.step, r.time_ns / NS_PER_S) for r in s.reports()] == [(k, 5 + 10 * k) for k in range(11)]
    assert record.end_ns == (105 * NS_PER_S,)


def test_all_reports_come_before_the_exit_and_before_any_decision_they_precede() -> None:
    w = workload((0, Job("a"), course(100)), (0, Job("b"), course(35)))
    _, s = simulate(w, FirstComeScheduler(), gpus=2)
    exit_b = next(i for i, (_, e) in enumerate(s.log) if isinstance(e, JobExited) and e.job_id == "b")
    seen = [r for _, e in s.log[:exit_b] if isinstance(e, ProgressReported) for r in e.reports]
    assert {(r.job_id, r.step) for r in seen if r.job_id == "a"} == {("a", k) for k in range(4)}
    assert max(r.step for r in seen if r.job_id == "b") == 10
    assert sorted(r.time_ns for r in seen) == [r.time_ns for r in seen]


def test_a_resume_holds_devices_for_the_restart_cost_and_keeps_progress() -> None:
    w = workload((0, Job("a"), course(100)), (30, Job("b"), course(20)))
    record, s = simulate(w, FirstComeScheduler(preempt_at={40: "a"}), restart_ns=30 * NS_PER_S)
    # a runs 0-40, b 40-60, a holds its device again from 60, works from 90, and needs 60 s more
    assert ends(s) == [(40, "a", "preempted"), (60, "b", "completed"), (150, "a", "completed")]
    last = record.segments[-1]
    assert (last.start_ns, last.work_ns, last.share_from) == (60 * NS_PER_S, 90 * NS_PER_S, pytest.approx(0.4))
    assert [r.step for r in s.reports() if r.job_id == "a"] == list(range(11))


def test_checkpoint_time_holds_the_devices_without_progress() -> None:
    w = workload((0, Job("a"), course(100)), (30, Job("b"), course(20)))
    record, s = simulate(w, FirstComeScheduler(preempt_at={40: "a"}), restart_ns=0, checkpoint_ns=7 * NS_PER_S)
    assert ends(s)[0] == (47, "a", "preempted")
    assert record.segments[0].share_to == pytest.approx(0.4)


def test_the_users_stop_comes_at_its_hidden_share_and_nothing_is_reported_after_it() -> None:
    w = workload((0, Job("a"), course(100, stop=0.55)))
    _, s = simulate(w, FirstComeScheduler())
    assert ends(s) == [(55, "a", "stopped")]
    assert [at for at, _ in s.of(StopRequested)] == [55]
    assert max(r.step for r in s.reports()) == 5


def test_a_failure_ends_the_job_at_its_share() -> None:
    _, s = simulate(workload((0, Job("a"), course(100, fail=0.2))), FirstComeScheduler())
    (at, event), *rest = s.of(JobExited)
    assert isinstance(event, JobExited)
    assert (at, event.outcome, event.exit_code, rest) == (20, "failed", 1, [])


def test_losses_that_are_not_numbers_are_reported_as_none() -> None:
    losses = [1.0, math.nan, math.inf, 0.5]
    _, s = simulate(workload((0, Job("a"), course(3, losses=losses))), FirstComeScheduler())
    assert [r.loss for r in s.reports()] == [1.0, None, None, 0.5]


def test_faster_types_measured_speedups_and_stragglers_change_the_speed() -> None:
    job = Job("a", min_gpus=2, max_gpus=2, type_speed=(("v100", 2.0),))
    nodes = (Node("n", (Device("n/0", "v100"), Device("n/1", "v100"))),)
    _, s = simulate(workload((0, job, course(100))), FirstComeScheduler(), nodes=nodes)
    assert ends(s) == [(50, "a", "completed")]
    _, s = simulate(
        workload((0, job, course(100))),
        FirstComeScheduler(),
        nodes=nodes,
        straggler_share=1.0,
        straggler_slowdown=4.0,
    )
    assert ends(s) == [(200, "a", "completed")]


def test_a_lost_node_takes_the_work_since_the_checkpoint_with_it() -> None:
    w = workload((0, Job("a"), course(100_000)))
    record, s = simulate(
        w,
        FirstComeScheduler(),
        node_loss_per_day=4.0,
        repair_ns=100 * NS_PER_S,
        restart_ns=0,
        checkpoint_interval_ns=600 * NS_PER_S,
    )
    lost = [segment for segment in record.segments if segment.outcome == "lost"]
    assert lost
    assert len(lost) == len(s.of(NodeLost)) == len(s.of(NodeJoined)) - 1
    for before, after in zip(record.segments, record.segments[1:], strict=False):
        assert after.share_from == before.kept
        assert 0 <= before.share_to - before.kept <= 0.006 + 1e-9
        assert before.kept * 100_000 == pytest.approx(round(before.kept * 100_000 / 600) * 600)
    assert ends(s)[-1][2] == "completed"
    worked_s = sum((x.stop_ns - x.work_ns) / NS_PER_S for x in record.segments)
    assert worked_s == pytest.approx(100_000 + sum((x.share_to - x.kept) * 100_000 for x in lost))


def test_an_attempt_is_started_once_and_a_stale_action_changes_nothing() -> None:
    clock = SimClock()
    backend = SimBackend(clock, workload((0, Job("a"), course(10))), SimOptions(nodes=uniform_nodes(1)))
    while not isinstance(clock.next(), JobSubmitted):
        pass
    start = StartJob("a", 1, ("node000/0",), False, "")
    backend.execute(start)
    backend.execute(start)
    backend.execute(PreemptJob("a", 7, "stale"))
    seen = drain(clock.next)
    assert [type(e) for e in seen if not isinstance(e, ProgressReported)] == [JobStarted, JobExited]
    backend.execute(start)
    assert drain(clock.next) == []
    assert len(backend.record().segments) == 1


def drain(next_event: Callable[[], Event | None]) -> list[Event]:
    seen: list[Event] = []
    while (event := next_event()) is not None:
        seen.append(event)
    return seen


def test_clusters_are_checked() -> None:
    assert [len(n.devices) for n in uniform_nodes(17, 8)] == [8, 8, 1]
    with pytest.raises(InvalidInput, match="at least 1"):
        uniform_nodes(0)
