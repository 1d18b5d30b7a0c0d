"""The judge, against runs whose figures can be worked out by hand."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import pytest

from tierline.core.nouns import NS_PER_S, Job, Outcome, Sweep
from tierline.perf.truth import Arrival, Normaliser, Record, Segment, Truth, Workload
from tierline.runtime.judge import judge

S = NS_PER_S


def truth(losses: list[float], duration_s: float = 100.0, stop: float = 1.0, fail: float = 1.0) -> Truth:
    return Truth(np.arange(len(losses), dtype=np.int64), np.array(losses), duration_s, stop, fail)


def workload(*entries: tuple[float, Truth], sweep: str = "s") -> Workload:
    """Chance 1.0, best 0.0."""
    jobs = [Arrival(round(at * S), Job(f"j{i}", sweep=sweep), t) for i, (at, t) in enumerate(entries)]
    return Workload("test", None, (Sweep(sweep),), (Normaliser(1.0, 0.0),), tuple(jobs))


def segment(
    row: int,
    start: float,
    end: float,
    shares: tuple[float, float],
    attempt: int = 1,
    overhead: float = 0.0,
    outcome: Outcome | Literal["running"] = "completed",
) -> Segment:
    return Segment(
        row=row,
        attempt=attempt,
        gpus=1,
        gpu_type="gpu",
        start_ns=round(start * S),
        work_ns=round((start + overhead) * S),
        stop_ns=round(end * S),
        end_ns=round(end * S),
        share_from=shares[0],
        share_to=shares[1],
        kept=shares[1],
        outcome=outcome,
    )


def record(w: Workload, *segments: Segment, gpus: int = 1) -> Record:
    ends = [-1] * len(w.entries)
    for s in segments:
        if s.outcome in ("completed", "stopped", "failed"):
            ends[s.row] = s.end_ns
    return Record(segments, tuple((0, "gpu", 1) for _ in range(gpus)), tuple(ends), 0)


LINE = [1.0, 0.5, 0.0]  # utility rises linearly to 1


def test_one_job_from_start_to_end() -> None:
    w = workload((0, truth(LINE)), (1000, truth([1.0, 1.0])))  # horizon 1100
    found = judge(w, record(w, segment(0, 0, 100, (0, 1)), segment(1, 1000, 1100, (0, 1))), bound=2.0)
    assert found.utility == pytest.approx(1.0)
    assert found.of_bound == pytest.approx(0.5)
    assert found.utility_auc == pytest.approx((50 + 1000) / 1100)
    # reports at 50 s (0.5) and 100 s (1.0): regret 1 until 50, 0.5 until 100, 0 after
    assert found.best_regret == pytest.approx((50 + 25) / 1100)
    assert found.mean_jct_s == pytest.approx(100)
    assert found.makespan_s == pytest.approx(1100)
    assert found.wasted_gpu_s == pytest.approx(100)  # the second job never beats chance
    assert (found.idle_gpu_s, found.preemptions, found.unfinished) == (0.0, 0, 0)


def test_utility_and_area_stop_at_the_horizon_and_hold_between_attempts() -> None:
    w = workload((0, truth(LINE)), (100, truth([1.0, 1.0])))  # horizon 110
    first = segment(0, 0, 40, (0.0, 0.4), outcome="preempted")
    second = segment(0, 70, 150, (0.4, 1.0), attempt=2, overhead=20)
    found = judge(w, record(w, first, second, gpus=2))
    # works 0-40 and 90-150: at 110 it has done 0.6; area = 40·0.2 + 50·0.4 + 20·0.5
    assert found.utility == pytest.approx(0.6)
    assert found.utility_auc == pytest.approx((8 + 20 + 10) / 110)
    assert found.preemptions == 1
    assert found.unfinished == 1


def test_progress_lost_with_a_node_takes_no_utility_back() -> None:
    w = workload((0, truth(LINE)), (200, truth([1.0, 1.0])))  # horizon 220
    lost = segment(0, 0, 60, (0.0, 0.6), outcome="lost")
    again = segment(0, 60, 160, (0.0, 1.0), attempt=2)
    found = judge(w, record(w, lost, again))
    # 0..60 rises to 0.6 (area 18), 60..120 held at 0.6 (36), 120..160 rises to 1 (32), 160..220 at 1 (60)
    assert found.utility_auc == pytest.approx((18 + 36 + 32 + 60) / 220)


def test_losses_that_are_not_numbers_earn_nothing_and_take_nothing() -> None:
    w = workload((0, truth([math.nan, 0.5, math.inf, 0.25])), (1000, truth([1.0, 1.0])))
    found = judge(w, record(w, segment(0, 0, 90, (0, 1))))
    assert found.utility == pytest.approx(0.75)
    # a diverged job's GPU-seconds behind its last improvement are waste, but it improves at its end
    assert found.wasted_gpu_s == pytest.approx(0.0)


@pytest.mark.parametrize(
    ("course", "wasted_s"),
    [
        (truth([1.0, 0.5, 0.5, 0.5, 0.5]), 0.0),  # completes: what it took is not waste
        (truth([1.0, 0.5, 0.5, 0.5, 0.5], stop=0.75), 50.0),  # its user stops it; last improvement at 25 s
        (truth([1.0, 0.5, 0.5, 0.5, 0.5], fail=0.75), 50.0),
        (truth([1.0, 0.5, math.nan, math.nan, math.nan]), 75.0),  # diverges, and runs on for nothing
        (truth([1.0, 1.5, 1.2, 1.0, 1.0]), 100.0),  # never beats chance
        (truth([1.0, 1.0, 1.0, 1.0, 0.0], stop=0.9), 90.0),  # would have, but not before its stop
    ],
)
def test_waste(course: Truth, wasted_s: float) -> None:
    w = workload((0, course), (1000, truth([1.0, 0.0], duration_s=1.0)))
    share = course.end_fraction
    run = segment(0, 0, 100 * share, (0, share), outcome=course.end)
    assert judge(w, record(w, run)).wasted_gpu_s == pytest.approx(wasted_s)


def test_idle_counts_free_devices_only_while_a_job_that_fits_waits() -> None:
    w = workload((0, truth(LINE)), (50, truth(LINE)))
    both = (segment(0, 30, 130, (0, 1)), segment(1, 50, 150, (0, 1)))
    assert judge(w, record(w, *both, gpus=4)).idle_gpu_s == pytest.approx(30.0)  # one job, one device, 30 s
    assert judge(w, record(w, *both, gpus=1)).idle_gpu_s == pytest.approx(30.0)
    wide = Workload(
        "test",
        None,
        w.sweeps,
        w.normalisers,
        (Arrival(0, Job("j0", sweep="s", min_gpus=4, max_gpus=4), truth(LINE)), w.entries[1]),
    )
    assert judge(wide, record(wide, *both, gpus=2)).idle_gpu_s == pytest.approx(0.0)


def test_a_sweep_in_which_nothing_beats_chance_has_no_regret() -> None:
    w = workload((0, truth([1.0, 1.0])))
    flat = Workload("test", None, w.sweeps, (Normaliser(1.0, 1.0),), w.entries)
    found = judge(flat, record(flat, segment(0, 0, 100, (0, 1))))
    assert (found.best_regret, found.utility) == (0.0, 0.0)
    assert math.isnan(found.of_bound)
