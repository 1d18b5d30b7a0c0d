"""Stated synthetic learning curves, for traces that have none.

With x the share of the work done (0..1), B = 1 the chance level, one draw of each parameter per job:

- steep    1 − d·(1 − e^(−r·x)),               d ~ U(0.5, 0.95), r ~ U(6, 20)
- slow     1 − d·x^p,                          d ~ U(0.3, 0.8),  p ~ U(0.8, 1.6)
- plateau  1 − d·(1 − e^(−r·x)),               d ~ U(0.0, 0.25), r ~ U(20, 60)
- diverge  1 − 0.4·(1 − e^(−8·x)) up to a share b ~ U(0.1, 0.6), then (x − b) · U(2, 20) is added; behind b + 0.2 NaN

Kinds are drawn with chances 0.30, 0.30, 0.25, 0.15. Noise: every point but the first is multiplied by 1 + N(0, noise).
"""

from __future__ import annotations

import numpy as np

from tierline.core.views import Floats, Ints

KINDS = ("steep", "slow", "plateau", "diverge")
CHANCES = (0.30, 0.30, 0.25, 0.15)


def draw_kinds(rng: np.random.Generator, jobs: int) -> Ints:
    """Indices into KINDS (jobs)."""
    return np.searchsorted(np.cumsum(CHANCES)[:-1], rng.random(jobs), side="right").astype(np.int64)


def curves(rng: np.random.Generator, kinds: Ints, points: int, noise: float = 0.01) -> Floats:
    """Losses (jobs × points + 1) at evenly spaced shares of the work, the first of them 1.0 (chance). Rounded to 1e-9,
    so that a workload's hash is the same on every processor."""
    x = np.linspace(0.0, 1.0, points + 1)[None, :]
    a, b, c = rng.random((3, len(kinds)))[:, :, None]
    loss = np.empty((len(kinds), points + 1))
    steep, slow, plateau, diverge = (kinds == index for index in range(len(KINDS)))
    loss[steep] = 1.0 - (0.5 + 0.45 * a[steep]) * (1.0 - np.exp(-(6.0 + 14.0 * b[steep]) * x))
    loss[slow] = 1.0 - (0.3 + 0.5 * a[slow]) * x ** (0.8 + 0.8 * b[slow])
    loss[plateau] = 1.0 - 0.25 * a[plateau] * (1.0 - np.exp(-(20.0 + 40.0 * b[plateau]) * x))
    turn = 0.1 + 0.5 * a[diverge]
    rising = np.maximum(x - turn, 0.0) * (2.0 + 18.0 * c[diverge])
    loss[diverge] = np.where(x > turn + 0.2, np.nan, 1.0 - 0.4 * (1.0 - np.exp(-8.0 * x)) + rising)
    loss[:, 1:] *= 1.0 + noise * rng.standard_normal((len(kinds), points))
    return np.round(loss, 9)
