"""Shortest remaining time first."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

from tierline.core.views import ClusterView, Plan
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class ShortestRemainingTimeFirst:
    """Idea: the job that is predicted to be done soonest goes first, which is best for mean completion time.

    Source: Schrage 1968; as the reference of Tiresias and Gavel, here with predicted instead of true times.
    Inputs: forecast of remaining GPU-seconds. Memory: none. Cost: one sort a round.
    """

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = True
    needs_curves: ClassVar[bool] = True
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        assert view.forecast is not None and view.forecast.curves is not None
        left_s = view.forecast.curves.remaining_s + (~view.jobs.running) * (view.restart_ns / 1e9)
        order = by_rank(view, left_s)
        return plan_of(
            view,
            allocate(view, order),
            give=lambda row: f"predicted to be done in {left_s[row]:.0f} GPU-s",
            take=lambda row: f"predicted to need {left_s[row]:.0f} GPU-s more; shorter jobs wait",
        )
