"""ExplSched: devices to the highest training utility per GPU-second, at a clearing price."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tierline.core.views import Bools, ClusterView, Floats, Ints, Plan
from tierline.perf.price import posted_price
from tierline.policies.jobs.allocation import Allocation, allocate, by_rank, candidates, plan_of


@dataclass(slots=True)
class ExplSched:
    """Idea: every device unit to the highest marginal density ρ (best future average slope of utility per GPU-second);
    the clearing price λ is the ρ of the best unit refused. A job keeps its devices until a bid beats its own by `keep`.

    Source: ExplSched (IEEE CLUSTER 2023), online primal-dual; ρ and λ as in docs/concepts/price.
    Inputs: forecast (density, gain, unexplored), weight, speed-up. Memory: none. Cost: one sort a round.
    `priced=False` is the ablation λ ≡ 0: GPU-seconds cost nothing, so bids are gains per report interval
    and restarts are free.
    """

    keep: float = 0.3
    priced: bool = True

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = True
    needs_curves: ClassVar[bool] = False
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        assert view.forecast is not None
        jobs, forecast = view.jobs, view.forecast
        density = forecast.density * jobs.weight
        bid = density * (1.0 + self.keep * jobs.running) if self.priced else forecast.gain * jobs.weight
        unexplored, unpaid = forecast.unexplored, self._cannot_pay(view, density)
        # Two reports of everybody first (nothing is known before), running ones before new ones; then by bid.
        tier = np.select([unexplored & jobs.running, unexplored, ~unpaid], [0, 1, 2], 3)
        order = by_rank(view, tier, np.where(unexplored, 0.0, -bid))
        allocation = allocate(view, order, marginal=np.where(unexplored, np.inf, bid))
        price = self._clearing_price(view, allocation, density)

        def describe(row: int) -> str:
            if unexplored[row]:
                return "explores: fewer than two reports so far"
            return f"density {density[row]:.3g}/GPU-s, utility {forecast.utility[row]:.3f}"

        def outbid(row: int) -> str:
            return f"outbid: {describe(row)}, below the clearing price"

        return plan_of(view, allocation, describe, outbid, density=density, price=price)

    def _cannot_pay(self, view: ClusterView, density: Floats) -> Bools:
        """Waiting jobs that could not be preempted again and do not pay the posted price of such a commitment.

        p(g) = L·(U/L)^(g/c), g the devices so committed, c all. They come last instead of never: no device idles.
        """
        jobs = view.jobs
        committed = jobs.running & ~jobs.preemptible
        asks = candidates(view) & ~jobs.preemptible & ~jobs.running
        bids = density[jobs.eligible & (density > 0)]
        if not self.priced or not asks.any() or not len(bids):
            return np.zeros(len(jobs), np.bool_)
        used = np.array([float(jobs.gpus[committed].sum())])
        capacity = np.array([max(float(view.total.sum()), 1.0)])
        price = float(posted_price(used, capacity, float(bids.min()), float(bids.max()))[0])
        return asks & (density < price)

    def _clearing_price(self, view: ClusterView, allocation: Allocation, density: Floats) -> dict[str, float]:
        """λ per GPU type: density of the best job refused that could run there; 0 when nobody was refused."""
        if not self.priced:
            return dict.fromkeys(view.gpu_types, 0.0)
        refused: Ints = allocation.refused
        speed = view.jobs.type_speed[refused]
        return {
            name: float((density[refused] * speed[:, index]).max(initial=0.0))
            for index, name in enumerate(view.gpu_types)
        }
