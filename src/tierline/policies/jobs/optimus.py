"""Optimus: marginal reduction of remaining time."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tierline.core.views import ClusterView, Plan
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class Optimus:
    """Idea: one worker for each job, shortest first; every further GPU to the job whose remaining time it cuts most.

    Source: Peng et al., Optimus (EuroSys'18), section 4: gain = (t(n) − t(n+1)) per unit of the dominant resource.
    Inputs: forecast of remaining GPU-seconds, speed-up curves. Memory: none. Cost: one sort of all bids a round.
    """

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = True
    needs_curves: ClassVar[bool] = True
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        assert view.forecast is not None and view.forecast.curves is not None
        left_s = np.maximum(view.forecast.curves.remaining_s, 1.0)
        # allocate() values a further GPU at `marginal` x the speed it adds; with marginal = remaining time at one GPU
        # that ranks further GPUs as Optimus does, while first GPUs go out by shortest remaining time.
        order = by_rank(view, left_s)
        return plan_of(
            view,
            allocate(view, order),
            give=lambda row: f"remaining {left_s[row]:.0f} GPU-s",
            take=lambda row: f"remaining {left_s[row]:.0f} GPU-s; others finish sooner",
        )
