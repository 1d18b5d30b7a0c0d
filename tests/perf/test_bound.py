"""The LP bound: by hand, against brute force, and by how it must move."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tierline.perf.bound import BoundJob, concave_envelope, utility_bound


def job(arrival_s: float, *points: tuple[float, float], rate: float = 1.0) -> BoundJob:
    work, utility = zip(*points, strict=True)
    return BoundJob(arrival_s, np.array(work, dtype=float), np.array(utility, dtype=float), rate)


def test_the_envelope_is_the_least_concave_majorant() -> None:
    width, slope = concave_envelope(np.array([0.0, 1.0, 2.0, 4.0]), np.array([0.0, 0.1, 0.8, 1.0]))
    assert width == pytest.approx([2.0, 2.0])
    assert slope == pytest.approx([0.4, 0.1])


def test_a_flat_curve_has_no_pieces_and_a_jump_at_zero_is_free() -> None:
    assert len(concave_envelope(np.array([0.0, 5.0]), np.array([0.0, 0.0]))[0]) == 0
    assert utility_bound([job(0, (0, 0.3), (10, 0.3))], 1, 100) == pytest.approx(0.3)


def test_one_device_goes_to_the_steeper_curve_first() -> None:
    jobs = [job(0, (0, 0), (10, 1.0)), job(0, (0, 0), (10, 0.5))]
    assert utility_bound(jobs, 1, 10) == pytest.approx(1.0)
    assert utility_bound(jobs, 1, 15) == pytest.approx(1.25)
    assert utility_bound(jobs, 2, 10) == pytest.approx(1.5)


def test_arrivals_and_rates_are_respected() -> None:
    late = job(8, (0, 0), (10, 1.0))
    assert utility_bound([late], 4, 10) == pytest.approx(0.2)  # two seconds on one device
    assert utility_bound([job(8, (0, 0), (10, 1.0), rate=2.0)], 4, 10) == pytest.approx(0.4)
    assert utility_bound([late], 4, 8) == pytest.approx(0.0)
    assert utility_bound([], 4, 8) == 0.0


def rising(*gains: int) -> BoundJob:
    return job(0, *zip(range(4), np.cumsum([0, *gains]) / 30.0, strict=True))


curves = st.lists(st.integers(0, 10), min_size=3, max_size=3).map(lambda gains: rising(*gains))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(curves, st.integers(0, 3)), min_size=1, max_size=3), st.integers(1, 2))
def test_no_unit_schedule_is_better(drawn: list[tuple[BoundJob, int]], gpus: int) -> None:
    """Brute force over all schedules of whole seconds: horizon 4, each job on at most one device."""
    jobs = [BoundJob(float(at), j.work_gpu_s, j.utility, 1.0) for j, at in drawn]
    bound = utility_bound(jobs, gpus, 4.0)
    best = 0.0
    choices = [c for n in range(gpus + 1) for c in itertools.combinations(range(len(jobs)), n)]
    for schedule in itertools.product(choices, repeat=4):
        worked = [
            sum(i in second and t >= jobs[i].arrival_s for t, second in enumerate(schedule)) for i in range(len(jobs))
        ]
        best = max(best, sum(float(np.interp(w, j.work_gpu_s, j.utility)) for w, j in zip(worked, jobs, strict=True)))
    assert bound >= best - 1e-9
    if all((np.diff(j.utility, 2) <= 1e-12).all() for j in jobs):
        assert bound == pytest.approx(best)  # concave curves and whole arrivals: the program is integral


@example([(rising(0, 1, 0), 0.0), (rising(0, 10, 0), 2.0**-14), (rising(5, 0, 0), 0.0), (rising(5, 0, 0), 2.0)], 1)
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(curves, st.floats(0, 3)), min_size=1, max_size=8), st.integers(1, 4))
def test_more_devices_more_time_and_coarser_slots_never_lower_it(
    drawn: list[tuple[BoundJob, float]], gpus: int
) -> None:
    jobs = [BoundJob(at, j.work_gpu_s, j.utility, 1.0) for j, at in drawn]
    here = utility_bound(jobs, gpus, 4.0)
    least = here - 1e-5 * max(1.0, here)  # each constraint holds to the solver's 1e-7, and utilities multiply that
    assert utility_bound(jobs, gpus + 1, 4.0) >= least
    assert utility_bound(jobs, gpus, 5.0) >= least
    assert utility_bound(jobs, gpus, 4.0, max_slots=2) >= least
