"""SLAQ: quality-driven scheduling."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from tierline.core.views import ClusterView, Plan
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class Slaq:
    """Idea: each unit goes to the job whose normalised loss is predicted to drop most within the next interval.

    Source: Zhang et al., SLAQ (SoCC'17): greedy on predicted drop, divided by the largest drop seen in that job.
    Inputs: forecast of the next quantum's drop. Memory: none. Cost: one sort a round.
    """

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = True
    needs_curves: ClassVar[bool] = True
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        assert view.forecast is not None and view.forecast.curves is not None
        drop = view.forecast.curves.loss_drop / view.jobs.min_gpus
        order = by_rank(view, -drop)
        return plan_of(
            view,
            allocate(view, order, marginal=drop),
            give=lambda row: f"normalised loss predicted to drop by {drop[row]:.3g} in the next interval",
            take=lambda row: f"predicted drop {drop[row]:.3g} is below the others'",
        )
