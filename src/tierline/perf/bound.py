"""The most utility that any schedule can have at the horizon: a full-information linear program.

Fluid (devices divide freely), preemptive without cost, arrivals respected, every curve replaced by its concave envelope
up to the job's hidden end. Each of these only adds schedules or utility, so the optimum bounds every real policy.

    max Σ_i u_i(0) + Σ_ik slope_ik · y_ik
    Σ_i x_is ≤ GPUs · length_s        x_is ≤ rate_i · (time of slot s after i's arrival)
    Σ_k y_ik ≤ Σ_s x_is               0 ≤ y_ik ≤ width_ik

x_is: GPU-seconds of job i in slot s; y_ik: those spent on piece k of its envelope. Slots lie between successive
arrivals. Above `max_slots` neighbouring slots are merged: a job may then use its first slot's devices from before its
arrival, though no longer than it is there, which again only adds schedules.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linprog
from scipy.sparse import coo_matrix

from tierline.core.nouns import NS_PER_S
from tierline.core.views import Floats
from tierline.perf.speedup import speedup_curve
from tierline.perf.truth import Workload, until_end


@dataclass(frozen=True, slots=True, eq=False)
class BoundJob:
    """`work_gpu_s` and `utility`: knots of best-so-far utility (from 0 GPU-seconds on, both non-decreasing) up to the
    job's end. `rate_gpus`: most GPU-seconds per second that it can turn into work."""

    arrival_s: float
    work_gpu_s: Floats
    utility: Floats
    rate_gpus: float = 1.0


def concave_envelope(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """(widths, slopes) of the least concave majorant of the points, slopes falling and positive."""
    hull: list[int] = []
    for j in range(len(x)):
        while hull and x[j] == x[hull[-1]] and y[j] >= y[hull[-1]]:
            hull.pop()
        while len(hull) > 1:
            a, b = hull[-2], hull[-1]
            if (y[b] - y[a]) * (x[j] - x[a]) > (y[j] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(j)
    width, rise = np.diff(x[hull]), np.diff(y[hull])
    keep = (rise > 1e-12) & (width > 0)
    return width[keep], rise[keep] / width[keep]


def utility_bound(jobs: Sequence[BoundJob], gpus: float, horizon_s: float, max_slots: int = 200) -> float:
    """The optimum of the program above; 0.0 without jobs. Raises RuntimeError if HiGHS finds none (a bug of ours)."""
    present = [job for job in jobs if job.arrival_s < horizon_s]
    base = sum(float(job.utility[0]) for job in present)
    pieces = [concave_envelope(job.work_gpu_s, job.utility) for job in present]
    useful = [(job, *piece) for job, piece in zip(present, pieces, strict=True) if len(piece[0])]
    if not useful:
        return base
    edges = np.unique([job.arrival_s for job, *_ in useful])
    if len(edges) > max_slots:
        edges = edges[np.unique(np.linspace(0, len(edges) - 1, max_slots).round().astype(int))]
    edges = np.append(edges, horizon_s)
    lengths = np.diff(edges)
    slots = len(lengths)

    rows: list[NDArray[Any]] = []
    columns: list[NDArray[Any]] = []
    values: list[Floats] = []
    cost: list[Floats] = []
    upper: list[Floats] = []
    at = 0
    for number, (job, width, slope) in enumerate(useful):
        first = int(np.searchsorted(edges, job.arrival_s, side="right")) - 1
        open_slots = np.arange(first, slots)
        x = at + np.arange(len(open_slots))
        y = at + len(x) + np.arange(len(width))
        at += len(x) + len(width)
        link = slots + number
        rows += [open_slots, np.full(len(x) + len(y), link)]
        columns += [x, x, y]
        values += [np.ones(len(x)), -np.ones(len(x)), np.ones(len(y))]
        cost += [np.zeros(len(x)), -slope]
        there = edges[first + 1 :] - np.maximum(edges[first:-1], job.arrival_s)
        upper += [job.rate_gpus * there, width]
    # HiGHS' tolerances are absolute, and slopes per GPU-second are far below one: so GPU-hours (less than hours where the
    # whole is short) and utility × 1000
    unit_s = min(3600.0, horizon_s / 100)
    limits = np.concatenate([gpus * lengths / unit_s, np.zeros(len(useful))])
    matrix = coo_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), shape=(len(limits), at)
    ).tocsr()
    high = np.concatenate(upper) / unit_s
    bounds = np.stack([np.zeros(at), high], axis=1)
    solve: Any = linprog  # its stubs know no sparse constraints
    found = solve(np.concatenate(cost) * unit_s * 1000.0, A_ub=matrix, b_ub=limits, bounds=bounds, method="highs")
    if not found.success:
        raise RuntimeError(f"the bound's linear program has no solution: {found.message}")
    return base - float(found.fun) / 1000.0


def workload_bound(workload: Workload, gpu_types: Sequence[str], max_slots: int = 200) -> float:
    """The bound of a workload on devices of `gpu_types` (one entry a device); as fast as the job's best type, so loose
    on clusters of several types."""
    jobs = []
    for entry in workload.entries:
        job, truth = entry.job, entry.truth
        speeds = dict(job.type_speed)
        usable = {t for t in gpu_types if not job.gpu_types or t in job.gpu_types}
        fastest = max((speeds.get(t, 1.0) for t in usable), default=1.0)
        curve = speedup_curve(job.speedup, job.min_gpus, job.max_gpus)
        sizes = np.arange(job.min_gpus, job.max_gpus + 1)
        speed = np.ones(1) if curve is None else curve[job.min_gpus :]
        # work per GPU-second at the most efficient size, and work per second at the fastest one
        efficiency = float((speed / sizes[: len(speed)]).max()) * fastest
        shares, utility = until_end(truth, workload.normaliser_of[job.sweep])
        jobs.append(
            BoundJob(
                arrival_s=entry.time_ns / NS_PER_S,
                work_gpu_s=shares * truth.duration_s / efficiency,
                utility=utility,
                rate_gpus=float(speed.max()) * fastest / efficiency,
            )
        )
    return utility_bound(jobs, float(len(gpu_types)), workload.horizon_ns / NS_PER_S, max_slots)
