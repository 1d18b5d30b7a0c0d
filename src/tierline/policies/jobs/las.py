"""Least attained service."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tierline.core.views import ClusterView, Plan
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of


@dataclass(slots=True)
class LeastAttainedService:
    """Idea: jobs that have received little GPU time go first; queues by attained service, FIFO within a queue.

    Source: Tiresias (NSDI'19), discretised 2D-LAS: service = GPUs x time; queue k ends at `first_queue_quanta`·2^k quanta.
    Inputs: attained GPU time, arrival. Memory: none. Cost: one sort a round.
    """

    first_queue_quanta: int = 5

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = False
    needs_curves: ClassVar[bool] = False
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        jobs = view.jobs
        first_ns = self.first_queue_quanta * view.quantum_ns
        queue = np.ceil(np.log2(np.maximum(jobs.attained_gpu_ns / first_ns, 0.5) + 1e-12)).astype(np.int64)
        order = by_rank(view, queue, jobs.arrival_ns)
        return plan_of(
            view,
            allocate(view, order),
            give=lambda row: f"queue {max(queue[row], 0)}: {jobs.attained_gpu_ns[row] / 1e9:.0f} GPU-s received",
            take=lambda row: f"fell to queue {max(queue[row], 0)}; others have received less",
        )
