"""OASiS: admission at a posted price, without preemption."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from tierline.core.views import ClusterView, Floats, Plan
from tierline.perf.price import posted_price
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class Oasis:
    """Idea: a job is admitted iff its expected utility exceeds the posted price of the slots it will hold; then it stays.

    Source: Bao et al., OASiS (INFOCOM'18): p(g) = L·(U/L)^(g/c) over future slots, online primal-dual, no preemption.
    Inputs: forecast of utility to come and of remaining time. Memory: the extremes of utility per GPU-second seen (U, L).
    Cost: O(running · slots) a round. A refused job asks again when prices fall, which is kinder than the paper's refusal.
    """

    slots: int = 32
    slot_quanta: int = 10

    preemptive: ClassVar[bool] = False
    needs_forecast: ClassVar[bool] = True
    needs_curves: ClassVar[bool] = True
    work_conserving: ClassVar[bool] = False

    least: float = field(default=0.0, init=False)
    most: float = field(default=0.0, init=False)

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        assert view.forecast is not None and view.forecast.curves is not None
        jobs, forecast = view.jobs, view.forecast
        work_s = np.maximum(view.forecast.curves.remaining_s, view.quantum_ns / 1e9)
        gain = np.maximum(forecast.density, 0.0) * work_s * jobs.weight
        rate = gain / (work_s * jobs.min_gpus)
        waiting = by_rank(view, jobs.arrival_ns)
        bids = rate[waiting][rate[waiting] > 0]
        if len(bids):
            self.most = max(self.most, float(bids.max()))
            self.least = min(self.least or np.inf, float(bids.min()) / 2.0)  # an idle cluster refuses nobody
        if not self.most:
            return plan_of(view, allocate(view, waiting), lambda row: "no bids yet", lambda row: "never")
        committed = self._commitments(view, work_s)
        total = float(view.total.sum())
        slot_s = self.slot_quanta * view.quantum_ns / 1e9
        admitted = []
        for row in waiting:
            span = min(int(np.ceil(work_s[row] / slot_s)), self.slots)
            price = posted_price(committed[:span], np.full(span, max(total, 1.0)), self.least, self.most)
            if gain[row] > float(price.sum()) * slot_s * jobs.min_gpus[row] * (work_s[row] / (span * slot_s)):
                committed[:span] += jobs.min_gpus[row]
                admitted.append(row)
        order = np.array(admitted, dtype=np.int64)
        return plan_of(
            view,
            allocate(view, order),
            give=lambda row: f"utility {gain[row]:.3g} exceeds the posted price of its slots",
            take=lambda row: "never",
            density=rate,
        )

    def _commitments(self, view: ClusterView, work_s: Floats) -> Floats:
        """Devices promised per future slot (slots): a running job holds its own until its predicted end."""
        jobs = view.jobs
        slot_s = self.slot_quanta * view.quantum_ns / 1e9
        committed = np.zeros(self.slots)
        for row in np.flatnonzero(jobs.running):
            committed[: min(int(np.ceil(work_s[row] / slot_s)), self.slots)] += jobs.gpus[row]
        return committed
