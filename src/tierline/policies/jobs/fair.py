"""Equal time for every job."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tierline.core.views import ClusterView, Plan
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class FairTimeSlicing:
    """Idea: all live jobs take turns; each turn lasts `slice_quanta` quanta, so that restarts do not eat the share.

    Source: FAIR, the first baseline of ExplSched (600 s rounds, one GPU each): round robin, least recently served first.
    Inputs: since when a job waits or runs, weight. Memory: none. Cost: one sort a round.
    """

    slice_quanta: int = 10

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = False
    needs_curves: ClassVar[bool] = False
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        jobs = view.jobs
        turn_ns = self.slice_quanta * view.quantum_ns * jobs.weight / max(float(jobs.weight.max(initial=0.0)), 1e-12)
        in_turn = jobs.running & (view.now_ns - jobs.started_ns < turn_ns)
        waited_since = np.where(jobs.running, jobs.started_ns, jobs.queued_ns)
        # In its turn: stays. Then those who wait, longest first. Then those whose turn is over, if devices are left.
        order = by_rank(view, ~in_turn, jobs.running, waited_since)
        return plan_of(view, allocate(view, order), give=lambda row: "its turn", take=lambda row: "its turn is over")
