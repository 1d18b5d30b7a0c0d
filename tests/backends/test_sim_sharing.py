"""The simulated cluster with two jobs on a device: true speeds, exact times, what is told of them, whose time it is."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence

import numpy as np
import pytest

from tierline.backends.jobs.sim import STALLED, UNKNOWN_PAIR, SimBackend, SimOptions, uniform_nodes
from tierline.clock import SimClock
from tierline.core.actions import Action, PreemptJob, StartJob
from tierline.core.contracts import Packing
from tierline.core.events import Event, JobExited, JobSubmitted, NodeLost, PairsMeasured, ProgressReported, SlowdownSeen
from tierline.core.nouns import NS_PER_S, Job, PairSpeed, Sweep
from tierline.perf.truth import Arrival, Normaliser, Record, Truth, Workload
from tierline.policies.jobs import make_policy
from tierline.policies.jobs.packing import GainPacking
from tierline.runtime.codec import decode_actions, decode_event, encode_actions, encode_event
from tierline.runtime.driver import Driver
from tierline.runtime.judge import judge, sharing_figures
from tierline.schedulers.jobs import JobScheduler

TRUE = {("a", "b"): 0.8, ("b", "a"): 0.5, ("a", "a"): 0.3, ("c", "a"): 0.0, ("a", "c"): 0.0}
"""True speeds of the tests; whoever stands first has this speed beside the second."""


def measured(**speeds: float) -> tuple[PairSpeed, ...]:
    return tuple(PairSpeed("", pair[0], pair[1], speed) for pair, speed in speeds.items())


def course(duration_s: float) -> Truth:
    return Truth(np.arange(11, dtype=np.int64), np.linspace(1.0, 0.0, 11), duration_s)


class Recorder:
    """Keeps what the loop did, as the event table would: through the codec and back."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, Event, list[Action]]] = []

    def append(self, entries: Sequence[tuple[int, Event, Sequence[Action]]]) -> None:
        for now, event, actions in entries:
            again = decode_event(*encode_event(event))
            self.rows.append((now / NS_PER_S, again, decode_actions(encode_actions(actions))))

    def events(self, kind: type[Event]) -> list[tuple[float, Event]]:
        return [(at, event) for at, event, _ in self.rows if isinstance(event, kind)]

    def actions(self, kind: type[Action]) -> list[tuple[float, Action]]:
        return [(at, action) for at, _, actions in self.rows for action in actions if isinstance(action, kind)]


def run(
    *jobs: tuple[float, str, float],
    told: tuple[PairSpeed, ...] = (),
    packing: Packing | None = GainPacking(),
    policy: str = "fifo",
    gpus: int = 1,
    **options: object,
) -> tuple[Record, Recorder, Workload]:
    """Jobs (arrival s, kind, duration s) named by their number, under `fifo` on one device."""
    entries = tuple(
        Arrival(round(at * NS_PER_S), Job(f"j{n}", sweep="s", job_type=kind), course(duration_s))
        for n, (at, kind, duration_s) in enumerate(jobs)
    )
    load = Workload("test", None, (Sweep("s", chance=1.0),), (Normaliser(1.0, 0.0),), entries, pair_speed=TRUE)
    clock, recorder = SimClock(), Recorder()
    sim = SimOptions(nodes=uniform_nodes(gpus), **{"noise": 0.0, "measured": told, **options})  # type: ignore[arg-type]
    backend = SimBackend(clock, load, sim)
    Driver(JobScheduler(make_policy(policy), packing=packing), backend, clock, recorder).run()
    return backend.record(), recorder, load


def ends(recorder: Recorder) -> list[tuple[float, str, str]]:
    return [(at, e.job_id, e.outcome) for at, e in recorder.events(JobExited) if isinstance(e, JobExited)]


def test_both_run_at_their_true_speeds_and_the_rest_alone() -> None:
    _, log, _ = run((0, "a", 100), (10, "b", 100), told=measured(ab=0.8, ba=0.5))
    # a: 10 s alone, 90 s of work at 0.8 until 122.5; b: 112.5 s at 0.5 by then, the other 43.75 s alone
    assert ends(log) == [(122.5, "j0", "completed"), (166.25, "j1", "completed")]


def test_reports_keep_their_exact_times_through_a_change_of_speed() -> None:
    _, log, _ = run((0, "a", 100), (15, "b", 1000), told=measured(ab=0.8, ba=0.5), window_ns=0)
    reports = [r for _, e in log.events(ProgressReported) for r in e.reports if r.job_id == "j0"]  # type: ignore[union-attr]
    assert [r.step for r in reports] == list(range(11))
    times = [r.time_ns / NS_PER_S for r in reports]
    assert times[:2] == [0, 10]
    assert times[2:] == pytest.approx([15 + (10 * k - 15) / 0.8 for k in range(2, 11)])


def test_slowdowns_are_told_of_both_after_windows_that_double() -> None:
    _, log, _ = run((0, "a", 1000), (10, "b", 5000), told=measured(ab=0.8, ba=0.5), window_ns=60 * NS_PER_S)
    seen = [(at, e.job_id, e.with_jobs, e.speed) for at, e in log.events(SlowdownSeen) if isinstance(e, SlowdownSeen)]
    assert [at for at, *_ in seen[::2]] == [70.0, 190.0, 430.0, 910.0]
    assert seen[:2] == [(70.0, "j0", ("j1",), 0.8), (70.0, "j1", ("j0",), 0.5)]


def test_a_bad_pair_is_undone_once_it_was_seen_and_its_belief_stays() -> None:
    told = measured(aa=0.9)  # the truth is 0.3
    record, log, _ = run((0, "a", 1000), (0, "a", 1000), (0, "a", 1000), told=told)
    (at, first), *_ = log.actions(PreemptJob)
    assert isinstance(first, PreemptJob) and (at, first.job_id) == (60.0, "j1")
    assert "no longer shares with j0" in first.reason
    figures = sharing_figures(record)
    assert (figures.packs, figures.bad, figures.unpacks, figures.bad_unpacks) == (1, 1, 1, 1)
    assert figures.mean_bad_s == figures.longest_bad_s == 60.0
    never, log, _ = run((0, "a", 1000), (0, "a", 1000), (0, "a", 1000), told=told, window_ns=0)
    assert log.actions(PreemptJob) == []
    assert sharing_figures(never).longest_bad_s > 1000


def test_two_that_do_not_fit_stand_still_until_they_are_parted() -> None:
    record, log, _ = run((0, "a", 100), (0, "c", 100), told=measured(ac=0.9, ca=0.9))
    assert log.actions(PreemptJob)[0][0] == 60.0
    assert ends(log)[1][0] == pytest.approx(160 - 60 * STALLED)
    assert record.shared[0].guest_speed == STALLED


def test_a_pair_the_truth_does_not_know_takes_turns() -> None:
    _, log, _ = run((0, "b", 100), (0, "b", 100), told=measured(bb=0.9), window_ns=0)
    assert ends(log)[0][0] == pytest.approx(100 / UNKNOWN_PAIR)


def test_a_shared_device_is_charged_at_half_and_gpu_seconds_add_up() -> None:
    record, _, load = run((0, "a", 100), (10, "b", 100), told=measured(ab=0.8, ba=0.5))
    charged = sum(s.charge * s.gpus * (s.end_ns - s.start_ns) for s in record.segments) / NS_PER_S
    assert charged == pytest.approx(166.25)  # one device, from 0 to the end of the last
    by_row = [[s for s in record.segments if s.row == row] for row in (0, 1)]
    for segments in by_row:
        for before, after in itertools.pairwise(segments):
            assert (after.start_ns, after.share_from) == (before.end_ns, before.share_to)
    assert [s.charge for s in by_row[0]] == [1.0, 0.5]
    assert [s.charge for s in by_row[1]] == [0.5, 1.0]
    found = judge(load, record)
    assert (found.unfinished, found.idle_gpu_s, found.preemptions) == (0, 0.0, 0)


def test_sharing_switched_off_is_as_if_there_were_no_pairs() -> None:
    """Exclusive runs do not depend on what is measured, nor on the kinds of the jobs."""
    jobs = ((0, "a", 100), (3, "b", 50), (9, "a", 70))
    for policy in ("fifo", "las", "explsched"):
        plain = run(*((at, "", s) for at, _, s in jobs), policy=policy, packing=None)[1].rows
        told = run(*jobs, policy=policy, packing=None, told=measured(ab=0.8))[1].rows
        kept = [row for row in told if not isinstance(row[1], PairsMeasured)]
        assert [(at, actions) for at, e, actions in kept if not isinstance(e, JobSubmitted)] == [
            (at, actions) for at, e, actions in plain if not isinstance(e, JobSubmitted)
        ]


def test_lost_nodes_take_back_work_done_at_changing_speeds_to_a_checkpoint() -> None:
    record, log, _ = run(
        (0, "a", 50_000), (100, "b", 50_000), told=measured(ab=0.8, ba=0.5), node_loss_per_day=6.0,
        repair_ns=100 * NS_PER_S, restart_ns=0,
    )  # fmt: skip
    assert log.events(NodeLost)
    for row in (0, 1):
        segments = [s for s in record.segments if s.row == row]
        for before, after in itertools.pairwise(segments):
            assert after.share_from == before.kept
            assert before.kept <= before.share_to + 1e-12
        lost = [s for s in segments if s.outcome == "lost"]
        assert lost and all((s.share_to - s.kept) * 50_000 <= 600 + 1e-6 for s in lost)


def test_what_was_recorded_repeats_the_run_bit_for_bit() -> None:
    rng_jobs = [(7.0 * n, "ab"[n % 2], 60.0 + 13 * n) for n in range(12)]
    for policy in ("fifo", "las", "explsched"):
        _, log, _ = run(*rng_jobs, told=measured(ab=0.8, ba=0.9, aa=0.7), policy=policy, gpus=3, noise=0.05)
        again = JobScheduler(make_policy(policy), packing=GainPacking())
        assert [again.handle(round(at * NS_PER_S), event) for at, event, _ in log.rows] == [a for _, _, a in log.rows]
        assert any(isinstance(a, StartJob) and a.shares_with for _, a in log.actions(StartJob))


def test_records_without_the_new_fields_are_read_as_exclusive_starts() -> None:
    action = json.loads(encode_actions([StartJob("a", 1, ("n/0",), False, "why")]))
    del action[0]["shares_with"]
    assert decode_actions(json.dumps(action)) == [StartJob("a", 1, ("n/0",), False, "why")]
    kind, body = encode_event(JobSubmitted(Job("a")))
    row = json.loads(body)
    for name in ("job_type", "sm_util", "bw_util", "shareable"):
        del row["job"][name]
    assert decode_event(kind, json.dumps(row)) == JobSubmitted(Job("a"))
