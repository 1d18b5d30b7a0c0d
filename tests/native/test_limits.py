"""Never over the limits, on the simulated device: a few hundred of the random workloads of benchmarks/kernel_limits.py.

What is checked is the device's truth, not what the gate believes. The last test is the check of the check: the same
workloads under a gate that always admits must break it.
"""

from __future__ import annotations

import pytest

pytest.importorskip("tierline._native", reason="the native part is not built (scripts/native)")

from tierline.backends.kernels.limits import Draw, Group, run_group

WORKLOADS = 300
MS = 1_000_000


def within_limits(group: Group) -> bool:
    return group.over_limit == 0 and group.excess_most == 0.0


@pytest.mark.parametrize("exact_ends", [True, False], ids=["ends-at-once", "ends-polled"])
def test_strict_with_exact_profiles_never_exceeds_a_limit(exact_ends: bool) -> None:
    group = run_group(Draw(exact_ends=exact_ends), 0, WORKLOADS)
    assert within_limits(group)
    assert group.stuck == 0 and group.forced == 0
    # Not held by keeping everybody apart.
    assert group.launches > 100 * WORKLOADS
    assert group.shared_share > 0.05


def test_a_gate_that_always_admits_breaks_the_check() -> None:
    group = run_group(Draw(policy="free"), 0, 60)
    assert not within_limits(group)
    assert group.over_limit > 10 and group.excess_most > 0.2


def test_profiles_off_by_a_fifth_exceed_by_no_more_than_that() -> None:
    """A kernel of share s is predicted at 0.8 s at least, so a sum kept at 1 is truly 1 / 0.8 at most."""
    group = run_group(Draw(profiles="noisy:0.2", exact_ends=False), 0, WORKLOADS)
    assert group.over_limit > 0
    assert group.excess_most <= 1 / 0.8 - 1 + 1e-6
    assert group.excess_share < 0.02


def test_limits_lowered_by_the_error_hold_although_profiles_are_off() -> None:
    group = run_group(Draw(profiles="noisy:0.2", exact_ends=False, margin=0.2), 0, WORKLOADS // 2)
    assert within_limits(group) and group.shared_ns > 0


def test_nobody_starves() -> None:
    """The stated bound: a launch older than 20 ms has the device drained for it. What runs then ends first, and older
    ones of others go before it."""
    group = run_group(Draw(exact_ends=False, duration_ns=200 * MS), 0, 8)
    assert within_limits(group) and group.stuck == 0 and group.forced == 0
    assert group.longest_wait_ns < 40 * MS


@pytest.mark.slow
def test_strict_over_many_workloads() -> None:
    assert within_limits(run_group(Draw(exact_ends=False), WORKLOADS, 3000))
