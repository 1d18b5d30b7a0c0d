"""What a GPU-second is worth to a job: its best future average slope of utility.

    ρ = max over t of gain(t) / (t + restart) / gpus
    gain(t) = a · ((1 + t/τ)^γ − 1) / γ         τ: GPU time the job has used well so far
    a = (u − u_first) + WAKE · q · (1 − u) / (1 + excess)

The gain is Lindy's rule: expect of the time to come what the life so far gave, per doubling of it. It ages by itself (τ
grows while u does not), so a plateau needs no detector. The second term of `a` is for jobs that have not learnt yet: each
may wake, with a chance that falls as 1/τ, times the siblings' prior `q` (`perf/prior.py`), less the further its loss lies
above chance (`excess`, in units of the sweep's range). Better curve fits buy nothing here: knowing the whole future of
every job that already learns adds 0.2 to 0.7 points of the LP bound (docs/decisions.md, "Density").
"""

from __future__ import annotations

import numpy as np

from tierline.core.views import Floats

GAMMA = 0.5
WAKE = 0.001
HORIZONS = np.array([1, 2, 3, 5, 8, 13, 21, 34], dtype=np.float64)


def promise(utility: Floats, first_utility: Floats, excess: Floats, prior: Floats) -> Floats:
    """`a` of the module's formula: utility per e-fold of life, learnt so far plus what waking up may bring (J)."""
    return np.asarray((utility - first_utility) + WAKE * prior * (1.0 - utility) / (1.0 + excess))


def best_average_slope(
    promise: Floats, life_s: Floats, unit_s: Floats, left_s: Floats, restart_s: Floats
) -> tuple[Floats, Floats]:
    """(density, gain) per job (J): utility per second on the job's own devices, and utility per `unit_s` of its own life,
    whatever that costs in seconds, devices and restarts (what is left of the density when the price is taken away).

    `life_s` = τ > 0; `unit_s` the shortest horizon looked at (a report interval or a quantum); `left_s` seconds of work
    left (inf = unknown); `restart_s` seconds that would be spent before any progress.
    """
    density = np.zeros_like(promise)
    gain = np.zeros_like(promise)
    for horizon in HORIZONS:
        t = np.minimum(horizon * unit_s, left_s)
        ahead = ((1.0 + t / life_s) ** GAMMA - 1.0) / GAMMA
        np.maximum(density, ahead / np.maximum(t + restart_s, 1e-9), out=density)
        np.maximum(gain, ahead / horizon, out=gain)
    return density * promise, gain * promise
