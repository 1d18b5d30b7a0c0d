"""The posted price of the online primal-dual method, for commitments that cannot be taken back.

Primal: maximise Σ utility of admitted bids, subject to the capacity of every resource (a device type in a time slot, say).
Dual: prices p per resource. A bid is admitted iff its utility exceeds Σ p·demand; then usage grows and with it the price

    p(g) = L · (U/L)^(g/c)          (g used of capacity c)

so that an idle resource costs L (nobody worth having is refused) and a full one costs U (nobody can pay).

Guarantee: with α = max(1, ln(U/L)), the admitted utility is at least OPT / 2α, if (a) U is at least every bid's utility per
unit of any single resource it needs; (b) the initial dual Σ L·c is at most OPT/2; (c) demands are small against capacity (p
changes little within one bid). L at most every bid's utility per unit of all it needs refuses nobody while all is idle.

Source: Bao et al., OASiS (INFOCOM'18), eq. 12; Buchbinder and Naor, The design of competitive online algorithms, 2009.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from tierline.core.views import Floats


def competitive_alpha(least: float, most: float) -> float:
    """α = max(1, ln(U/L)). Raises ValueError unless 0 < least <= most."""
    if not 0 < least <= most:
        raise ValueError(f"prices need 0 < L <= U, got L = {least:g}, U = {most:g}")
    return max(1.0, math.log(most / least))


def posted_price(used: Floats, capacity: Floats, least: float, most: float) -> Floats:
    """p(g) = L·(U/L)^(g/c), elementwise; `least` = L and `most` = U in utility per unit, 0 < L <= U."""
    ratio = max(most / least, math.e)  # α >= 1: a narrower spread is priced as if U/L were e
    return np.asarray(least * ratio ** (used / capacity), dtype=np.float64)


@dataclass(slots=True)
class PostedPrices:
    """Running state of the primal-dual admission over R resources.

    `capacity` (R) in units; `least` and `most` are L and U. `used` (R) never exceeds `capacity`.
    """

    capacity: Floats
    least: float
    most: float
    used: Floats = field(init=False)
    utility: float = field(init=False, default=0.0)

    def __post_init__(self) -> None:
        competitive_alpha(self.least, self.most)
        self.used = np.zeros_like(self.capacity, dtype=np.float64)

    def prices(self) -> Floats:
        return posted_price(self.used, self.capacity, self.least, self.most)

    def surplus(self, utility: float, demand: Floats) -> float:
        """utility − Σ p·demand; `demand` (R) in units."""
        return float(utility - self.prices() @ demand)

    def admit(self, utility: float, demand: Floats) -> bool:
        """Admit iff the bid pays its price and fits; then the price rises. Irrevocable until `release`."""
        if self.surplus(utility, demand) <= 0 or np.any(self.used + demand > self.capacity + 1e-9):
            return False
        self.used += demand
        self.utility += utility
        return True

    def release(self, demand: Floats) -> None:
        """Give back what an ended commitment held."""
        self.used = np.maximum(self.used - demand, 0.0)


def dual_objective(prices: PostedPrices, bids: Iterator[tuple[float, Floats]]) -> float:
    """Value of the dual solution that the final prices make: Σ c·p + Σ_bids max(0, utility − p·demand); an upper bound
    on every offline schedule (weak duality)."""
    final = prices.prices()
    return float(prices.capacity @ final) + sum(max(0.0, utility - float(final @ demand)) for utility, demand in bids)
