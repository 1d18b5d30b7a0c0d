"""ASHA: asynchronous successive halving."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tierline.core.views import Bools, ClusterView, Floats, Ints, Plan
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class Asha:
    """Idea: everybody gets a little; of those that reached a rung, the best 1/η of each sweep go on to the next.

    Source: Li et al., A system for massively parallel hyperparameter tuning (MLSys'20), the pausing variant: rungs at
    total_steps / η^k, promotions first (highest rung first), then new trials. Paused trials run only on devices that would
    idle, so nothing is lost.
    Inputs: steps, utility so far. Memory: none. Cost: one sort a sweep and round.
    """

    eta: int = 3
    rungs: int = 4
    default_steps: int = 81

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = True
    needs_curves: ClassVar[bool] = False
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        assert view.forecast is not None
        jobs = view.jobs
        total = np.where(jobs.total_steps > 0, jobs.total_steps, self.default_steps)
        share = np.maximum(jobs.step, 0) / total
        # Rung r is reached at a share η^(r − rungs) of all steps; 0 = not even the first.
        with np.errstate(divide="ignore"):
            reached = np.floor(self.rungs + np.log(share) / np.log(self.eta) + 1e-9)
        rung = np.clip(reached, 0, self.rungs).astype(np.int64)
        promoted = self._promoted(rung, view.forecast.utility, jobs.sweep, jobs.eligible)
        fresh = rung == 0
        # Between rungs a running job goes on; at a rung it goes on only if promoted.
        tier = np.select([promoted & ~fresh, fresh], [0, 1], 2)
        order = by_rank(view, tier, -rung * promoted, ~jobs.running, -view.forecast.utility * (tier == 2))
        return plan_of(
            view,
            allocate(view, order),
            give=lambda row: f"rung {rung[row]}: " + ("new trial", "promoted")[int(promoted[row] and not fresh[row])],
            take=lambda row: f"paused at rung {rung[row]}: not in the best 1/{self.eta}",
        )

    def _promoted(self, rung: Ints, score: Floats, sweep: Ints, live: Bools) -> Bools:
        """Rows among the best 1/η of those of their sweep that reached at least the same rung."""
        promoted = np.zeros(len(rung), np.bool_)
        for name in np.unique(sweep[live]):
            rows = np.flatnonzero(sweep == name)
            for level in range(1, self.rungs + 1):
                there = rows[rung[rows] >= level]
                best = there[np.argsort(-score[there], kind="stable")[: len(there) // self.eta]]
                promoted[best[rung[best] == level]] = True
        return promoted & live
