"""Handing out devices in an order, and saying what changes. The part that all job policies share.

Work-conserving by construction: the order is walked to its end, and a job that does not fit is passed over (backfill).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tierline.core.views import EMPTY_PLAN, Bools, ClusterView, Floats, Grant, Ints, Plan

Reason = Callable[[int], str]


@dataclass(frozen=True, slots=True)
class Allocation:
    """Target devices per row (`gpus`, 0 = none) and their type index (−1 = none), and the rows that were refused."""

    gpus: Ints
    gpu_type: Ints
    refused: Ints


def candidates(view: ClusterView) -> Bools:
    """Rows that this round may give devices to: all eligible ones at a quantum, only waiting ones in between."""
    jobs = view.jobs
    return jobs.eligible if view.may_preempt else jobs.eligible & ~jobs.running


def capacity(view: ClusterView) -> Ints:
    """Devices per type (T) that this round may hand out: the free ones, at a quantum also those of running jobs."""
    if not view.may_preempt:
        return view.free.copy()
    jobs = view.jobs
    held = jobs.running & jobs.eligible
    return view.free + np.bincount(jobs.gpu_type[held], weights=jobs.gpus[held], minlength=len(view.free)).astype(
        np.int64
    )


def by_rank(view: ClusterView, *keys: Floats | Ints | Bools) -> Ints:
    """Candidate rows in order of priority (highest first), then of the keys (smallest first), then of submission."""
    rows = np.flatnonzero(candidates(view))
    sort = [np.asarray(key)[rows] for key in reversed(keys)]
    return rows[np.lexsort((*sort, -view.jobs.priority[rows]))]


def allocate(view: ClusterView, order: Ints, marginal: Floats | None = None) -> Allocation:
    """Give each row of `order` its min_gpus while they fit, then what is left to elastic jobs.

    Running jobs that may not be preempted come first. With `marginal` (J: value of a GPU-second at min_gpus), GPUs
    above min_gpus are auctioned together with everybody's first ones, by `marginal` times the speed they add; without
    it they go out in the order of rank once everybody has been asked.
    """
    jobs = view.jobs
    left = capacity(view)
    gpus = np.zeros(len(jobs), np.int64)
    gpu_type = np.full(len(jobs), -1, np.int64)
    if view.may_preempt:
        fixed = np.flatnonzero(jobs.running & jobs.eligible & ~jobs.preemptible)
        if len(fixed):
            gpus[fixed], gpu_type[fixed] = jobs.gpus[fixed], jobs.gpu_type[fixed]
            np.subtract.at(left, jobs.gpu_type[fixed], jobs.gpus[fixed])
            order = order[~np.isin(order, fixed)]
    if len(left) == 1 and not (jobs.max_gpus[order] > 1).any() and (jobs.type_speed[order] > 0).all():
        chosen = order[: left[0]]
        gpus[chosen], gpu_type[chosen] = 1, 0
        return Allocation(gpus, gpu_type, order[left[0] :])
    bids = _bids(view, order, marginal)
    least = int(jobs.min_gpus[order].min(initial=1)) if marginal is None else 1
    free = left.tolist()
    speeds, now = jobs.type_speed, jobs.gpu_type
    refused: list[int] = []
    for place, (row, units) in enumerate(bids):
        if max(free, default=0) < least:
            refused += dict.fromkeys(row for row, _ in bids[place:] if gpus[row] == 0)
            break
        started = gpus[row] > 0
        chosen_type = _best_type(speeds[row], units, free, int(gpu_type[row] if started else now[row]), fixed=started)
        if chosen_type < 0:
            if not started:
                refused.append(row)
        elif started or units == jobs.min_gpus[row]:  # no further units for a job that did not get its first ones
            gpus[row] += units
            gpu_type[row] = chosen_type
            free[chosen_type] -= units
    return Allocation(gpus, gpu_type, np.array(refused, dtype=np.int64))


def _bids(view: ClusterView, order: Ints, marginal: Floats | None) -> list[tuple[int, int]]:
    """(row, units) in the order in which they are served; a job's first bid is for its min_gpus."""
    jobs = view.jobs
    bids = [(int(row), int(jobs.min_gpus[row])) for row in order]
    elastic = [int(row) for row in order if jobs.speedup[row] is not None]
    if not elastic:
        return bids
    if marginal is None:
        return bids + [(row, 1) for row in elastic for _ in range(int(jobs.max_gpus[row] - jobs.min_gpus[row]))]
    valued = [(-jobs.priority[row], -marginal[row], place, row, units) for place, (row, units) in enumerate(bids)]
    place = len(valued)
    for row in elastic:
        curve, least = jobs.speedup[row], int(jobs.min_gpus[row])
        assert curve is not None
        for n in range(least, int(jobs.max_gpus[row])):
            worth = marginal[row] * min(least * float(curve[n + 1] - curve[n]), 1.0)
            valued.append((-jobs.priority[row], -worth, place, row, 1))
            place += 1
    valued.sort()
    return [(row, units) for _, _, _, row, units in valued]


def _best_type(speed: Floats, units: int, free: list[int], present: int, *, fixed: bool) -> int:
    """The type a bid is served from: the one the job has now, if that is free, else its fastest; −1 = none fits.
    `fixed`: the job has units of its present type in this round already, so that no other will do."""
    if present >= 0 and free[present] >= units:
        return present
    if fixed:
        return -1
    fitting = [t for t, left in enumerate(free) if left >= units and speed[t] > 0]
    return max(fitting, key=lambda t: float(speed[t]), default=-1)


def plan_of(
    view: ClusterView,
    allocation: Allocation,
    give: Reason,
    take: Reason,
    density: Floats | None = None,
    price: dict[str, float] | None = None,
    payback_quanta: int = 5,
) -> Plan:
    """The changes from what is to what shall be: first who leaves, then who starts, in row order.

    A running elastic job is resized only if the speed it gains within `payback_quanta` outweighs its restart, or if
    the devices are wanted by others.
    """
    jobs = view.jobs
    target, now = allocation.gpus, jobs.gpus
    leaves = np.flatnonzero((target == 0) & jobs.running & jobs.eligible) if view.may_preempt else np.zeros(0, np.int64)
    starts = np.flatnonzero((target > 0) & ~jobs.running)
    grants = [Grant(int(row), 0, int(jobs.gpu_type[row]), take(int(row)), _at(density, row)) for row in leaves]
    if view.may_preempt:
        wanted = len(starts) > 0
        horizon_ns = payback_quanta * view.quantum_ns
        for row in np.flatnonzero((target > 0) & jobs.running & (target != now)):
            curve = jobs.speedup[row]
            assert curve is not None
            old, new = float(curve[now[row]]), float(curve[target[row]])
            if (new - old) * (horizon_ns - view.restart_ns) > old * view.restart_ns or (wanted and new < old):
                why = f"{give(int(row))}; resized from {now[row]} to {target[row]} GPUs"
                grants.append(Grant(int(row), int(target[row]), int(jobs.gpu_type[row]), why, _at(density, row)))
    for row in starts:
        grants.append(
            Grant(int(row), int(target[row]), int(allocation.gpu_type[row]), give(int(row)), _at(density, row))
        )
    if not grants and density is None and price is None and view.sharing is None:
        return EMPTY_PLAN
    return Plan(grants=tuple(grants), price=price, density=density, refused=allocation.refused)


def _at(column: Floats | None, row: int | np.signedinteger) -> float:
    return 0.0 if column is None else float(column[row])
