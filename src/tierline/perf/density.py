"""What a GPU-second is worth to a job: its best future average slope of utility.

    ρ = max over t of gain(t) / (t + restart) / gpus
    gain(t) = min(fitted(t), lindy(t)) + waking(t)
    lindy(t) = (u − u_first) · e(t),   waking(t) = WAKE · q · (1 − u) / (1 + excess) · e(t),   e(t) = ((1 + t/τ)^γ − 1) / γ

τ is the GPU time that the job has used well so far. Of two expectations of what a job that learns will still learn the
lower one counts: `fitted`, the drop that its fitted curve promises (`perf/curves.py`), and Lindy's rule, that the time to
come brings what the life so far brought, per doubling of it. The fit sees a smooth curve flatten long before Lindy's rule
does; Lindy's rule does not believe in every noisy dip. Both age by themselves, so a plateau needs no detector. Before three
reports there is no fit, and Lindy's rule stands alone.

The third term is for jobs that have not learnt yet: each may wake, with a chance that falls as 1/τ, times the siblings'
prior `q` (`perf/prior.py`), less the further its loss lies above chance (`excess`, in units of the sweep's range).
What was measured against it: docs/decisions.md, "Density".
"""

from __future__ import annotations

import numpy as np

from tierline.core.views import Floats

GAMMA = 0.5
WAKE = 0.001
HORIZONS = np.array([1, 2, 3, 5, 8, 13, 21, 34], dtype=np.float64)


def ageing(t_s: Floats, life_s: Floats) -> Floats:
    """e(t) of the module's formula: e-folds of life ahead, discounted by γ (J × H); `t_s` (J × H), `life_s` = τ (J)."""
    return np.asarray(((1.0 + t_s / life_s[:, None]) ** GAMMA - 1.0) / GAMMA)


def waking(utility: Floats, excess: Floats, prior: Floats) -> Floats:
    """Utility per e-fold of life that waking up may bring (J)."""
    return np.asarray(WAKE * prior * (1.0 - utility) / (1.0 + excess))


def expected_gain(learnt: Floats, awakening: Floats, fitted: Floats, ahead: Floats) -> Floats:
    """Utility to be gained within each horizon (J × H).

    `learnt` (J): u − u_first; `awakening` (J): see `waking`; `fitted` (J × H): gain by the fitted curve, NaN where there
    is none; `ahead` (J × H): see `ageing`.
    """
    lindy = learnt[:, None] * ahead
    return np.asarray(np.fmin(fitted, lindy) + awakening[:, None] * ahead)  # fmin: NaN gives way


def best_average_slope(gain: Floats, t_s: Floats, restart_s: Floats) -> Floats:
    """max over horizons of gain / (t + restart) (J): utility per second on the job's own devices.

    `gain`, `t_s` (J × H); `restart_s` (J): seconds that would be spent before any progress.
    """
    return np.asarray((gain / np.maximum(t_s + restart_s[:, None], 1e-9)).max(axis=1))
