"""First in, first out."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from tierline.core.views import ClusterView, Plan
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class FirstInFirstOut:
    """Idea: whoever came first runs first, to its end; smaller jobs may pass one that does not fit.

    Source: what a queue does (Slurm's default order, with backfill).
    Inputs: arrival, priority. Memory: none. Cost: one sort a round.
    """

    preemptive: ClassVar[bool] = False
    needs_forecast: ClassVar[bool] = False
    needs_curves: ClassVar[bool] = False
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        order = by_rank(view, view.jobs.arrival_ns)
        return plan_of(view, allocate(view, order), give=lambda row: "next in line", take=lambda row: "never")
