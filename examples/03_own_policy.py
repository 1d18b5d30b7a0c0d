"""A policy of your own, run in the simulator beside ours. It sees a frozen view and answers with a plan, no more.

To use it elsewhere name it as MODULE:CLASS: tierline up --policy my_module:Favourites
"""

import random
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from tierline.backends.jobs.sim import uniform_nodes
from tierline.core.contracts import JobPolicy
from tierline.core.views import ClusterView, Plan
from tierline.experiments import Experiment, build_policy, build_workload, simulate
from tierline.policies.jobs.allocation import allocate, by_rank, plan_of
from tierline.runtime.judge import judge


@dataclass(slots=True)
class Favourites:
    """Idea: whoever has fewer than `chances` reports first, then whoever has learnt most so far.

    Source: what many do by hand. Inputs: reports, utility so far. Memory: none. Cost: one sort a round.
    """

    chances: int = 3

    preemptive: ClassVar[bool] = True
    needs_forecast: ClassVar[bool] = True
    needs_curves: ClassVar[bool] = False
    work_conserving: ClassVar[bool] = True

    def plan(self, view: ClusterView, rng: random.Random) -> Plan:
        assert view.forecast is not None
        utility = view.forecast.utility
        tried = view.jobs.reports >= self.chances
        order = by_rank(view, tried, np.where(tried, -utility, 0.0))  # smallest first
        return plan_of(
            view,
            allocate(view, order),
            give=lambda row: f"utility {utility[row]:.2f}" if tried[row] else "deserves a chance",
            take=lambda row: f"utility {utility[row]:.2f}, others have learnt more or deserve a chance",
        )


experiment = Experiment("exploratory", uniform_nodes(8), ("las", "explsched"), jobs=60, loads=(4.0,))
workload = build_workload(experiment.source, experiment.nodes, experiment.jobs, 4.0, seed=0)
contenders: dict[str, JobPolicy] = {"favourites": Favourites()}
contenders |= {name: build_policy(name, workload) for name in experiment.policies}
for name, policy in contenders.items():
    figures = judge(workload, simulate(workload, policy, experiment))
    print(f"{name:<10} utility {figures.utility:3.0f}, regret of the best {figures.best_regret:.2f}")
