"""Random instances of the admission problem that posted prices solve, and their offline optimum.

An instance: R resources (a device type in a time slot each), bids that arrive one by one, each with a utility and a demand
per resource. OPT is the LP relaxation's value (HiGHS), so at least the true optimum: ratios against it are conservative.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from tierline.core.views import Floats
from tierline.perf.price import PostedPrices, competitive_alpha


@dataclass(frozen=True, slots=True)
class Instance:
    """`capacity` (R); `utility` (N) and `demand` (N × R) of the bids in order of arrival."""

    capacity: Floats
    utility: Floats
    demand: Floats

    def optimum(self) -> float:
        """Value of the LP relaxation: max Σ u·x, Σ demand·x <= capacity, 0 <= x <= 1."""
        solved = linprog(-self.utility, A_ub=self.demand.T, b_ub=self.capacity, bounds=(0, 1), method="highs")
        assert solved.fun is not None, "nothing admitted is always feasible"
        return -float(solved.fun)


def small_bids(rng: random.Random, steps: int = 40) -> Instance:
    """Unit demands over a few consecutive slots, `steps` of them fill a slot: the guarantee's assumption (c)."""
    slots = rng.randint(1, 6)
    bids = rng.randint(steps, steps * 6)
    demand = np.zeros((bids, slots))
    for bid in range(bids):
        first = rng.randrange(slots)
        demand[bid, first : first + rng.randint(1, 3)] = 1.0
    spread = rng.choice([2.0, 10.0, 1000.0])
    value = np.array([math.exp(rng.uniform(0.0, math.log(spread))) for _ in range(bids)])
    order = rng.choice([np.arange(bids), np.argsort(value), np.argsort(-value)])
    return Instance(np.full(slots, float(steps)), (value * demand.sum(axis=1))[order], demand[order])


def any_bids(rng: random.Random) -> Instance:
    """Without the assumptions: large demands, uneven capacities, values over four decades, any order."""
    slots, bids = rng.randint(1, 6), rng.randint(3, 40)
    capacity = np.array([float(rng.randint(2, 16)) for _ in range(slots)])
    demand = np.zeros((bids, slots))
    for bid in range(bids):
        first = rng.randrange(slots)
        last = min(first + rng.randint(1, 4), slots)
        demand[bid, first:last] = rng.randint(1, int(capacity[first:last].min()))
    value = np.array([math.exp(rng.uniform(0.0, math.log(rng.choice([3.0, 100.0, 1e4])))) for _ in range(bids)])
    return Instance(capacity, value * demand.sum(axis=1), demand)


def exact_prices(instance: Instance, optimum: float) -> PostedPrices:
    """L and U as the guarantee wants them: U no bid exceeds per unit of any one resource, L at most any bid's utility
    per unit of all it needs, and so small that the initial dual Σ L·c is at most OPT/2."""
    per_unit = instance.utility[:, None] / np.where(instance.demand > 0, instance.demand, np.inf)
    most = float(per_unit.max())
    least = float((instance.utility / instance.demand.sum(axis=1)).min())
    least = min(least, optimum / (2.0 * float(instance.capacity.sum())))
    return PostedPrices(instance.capacity, least, most)


def guaranteed_ratio(prices: PostedPrices, largest_share: float) -> float:
    """2α, times what the steps of finite bids cost: Σ c·Δp = c·p·(e^x − 1) with x = ln(U/L)·demand/c, not c·p·x."""
    alpha = competitive_alpha(prices.least, prices.most)
    x = alpha * largest_share
    return 2.0 * alpha * math.expm1(x) / x


def run_online(instance: Instance, prices: PostedPrices) -> float:
    """Admit in order of arrival; returns the utility won."""
    for utility, demand in zip(instance.utility, instance.demand, strict=True):
        prices.admit(float(utility), demand)
    return prices.utility


def run_learning(instance: Instance) -> float:
    """Without knowing L and U: the running extremes of utility per unit seen so far, the newest bid included."""
    prices: PostedPrices | None = None
    won = 0.0
    for utility, demand in zip(instance.utility, instance.demand, strict=True):
        density = float(utility) / float(demand.sum())
        if prices is None:
            prices = PostedPrices(instance.capacity, density / 2.0, density)
        prices.least, prices.most = min(prices.least, density / 2.0), max(prices.most, density)
        won += float(utility) if prices.admit(float(utility), demand) else 0.0
    return won
