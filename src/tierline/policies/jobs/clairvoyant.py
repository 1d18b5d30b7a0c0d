"""Clairvoyant: the true best average slope. For reference only."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tierline.core.views import ClusterView, Floats, Plan
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class Clairvoyant:
    """Idea: what `explsched` would do if it knew the future: greedy on the true best average slope, restart cost included.

    Source: the density of docs/concepts/price with the true curve in place of the forecast. Not a lower bound on anything.
    Inputs: `curves`, per job (GPU-seconds at min_gpus, best utility reached by then), given at construction, never through
    the view. Memory: none. Cost: O(points) a job and round.
    """

    curves: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict)

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = False
    needs_curves: ClassVar[bool] = False
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        jobs = view.jobs
        density = np.zeros(len(jobs))
        restart_s = view.restart_ns / 1e9
        for row in np.flatnonzero(jobs.eligible):
            restarts = int(jobs.restarts[row])
            done_s = max(jobs.attained_gpu_ns[row] / 1e9 - restarts * restart_s * jobs.min_gpus[row], 0.0)
            again = restart_s * jobs.min_gpus[row] if not jobs.running[row] and done_s > 0 else 0.0
            density[row] = jobs.weight[row] * self._slope(jobs.job_id[row], done_s, again)
        order = by_rank(view, -density)
        return plan_of(
            view,
            allocate(view, order, marginal=density),
            give=lambda row: f"true best slope {density[row]:.3g}",
            take=lambda row: f"true best slope {density[row]:.3g} is below the others'",
            density=density,
        )

    def _slope(self, job_id: str, done_s: float, restart_s: float) -> float:
        work_s, utility = self.curves[job_id]
        now = float(np.interp(done_s, work_s, utility))
        ahead = work_s > done_s
        if not ahead.any():
            return 0.0
        return float(np.max((utility[ahead] - now) / (work_s[ahead] - done_s + restart_s)))
