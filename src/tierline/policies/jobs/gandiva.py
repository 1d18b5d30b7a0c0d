"""Gandiva: start at once, share time, grow into what is idle."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tierline.core.views import ClusterView, Plan
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class Gandiva:
    """Idea: a new job starts at once, in the place of a random running one (early feedback); then all take turns.

    Source: Xiao et al., Gandiva (OSDI'18): over-subscription by suspend and resume, random choice of the suspended, growing
    of elastic jobs into idle devices. Packing two jobs on a device belongs to the kernel tier.
    Inputs: attempts so far, since when a job waits or runs. Memory: none. Cost: one sort a round.
    """

    slice_quanta: int = 10

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = False
    needs_curves: ClassVar[bool] = False
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        jobs = view.jobs
        never_ran = jobs.attained_gpu_ns == 0
        turn_over = jobs.running & (view.now_ns - jobs.started_ns >= self.slice_quanta * view.quantum_ns)
        noise = np.random.default_rng(rng.getrandbits(63)).random(len(jobs))
        # Newcomers, then running jobs within their turn in random order, then waiting ones, longest wait first.
        tier = np.select([never_ran, jobs.running & ~turn_over, ~jobs.running], [0, 1, 2], 3)
        within = np.where(jobs.running, noise, jobs.queued_ns.astype(np.float64))
        order = by_rank(view, tier, within)
        return plan_of(
            view,
            allocate(view, order),
            give=lambda row: "new jobs start at once" if never_ran[row] else "its turn",
            take=lambda row: "suspended for a new job" if not turn_over[row] else "its turn is over",
        )
