"""Learning curves: three families fitted at once, all jobs in one stroke.

    1/(a·k + b) + c (Optimus),   c + a·k^−α (pow3),   c + a·e^−bk

Each is `c + A·φ(k)` once its shape parameter is fixed, so that over a grid of shapes the best A >= 0 and c have a closed
form: weighted least squares, newest points weighing most. The shapes are then mixed by Akaike weights. Bounded: A >= 0
(losses fall) and the asymptote c stays above `floor`.

Sources: Peng et al., Optimus (EuroSys'18), section 3.1; Domhan et al. 2015 for pow3 and the mixture.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tierline.core.views import Floats

DECAY = 0.93  # weight of a point relative to the next newer one
MIN_POINTS = 3

_INVERSE = np.array([0.3, 1.0, 3.0, 10.0, 30.0])  # b/a of 1/(ak + b)
_POWER = np.array([0.2, 0.4, 0.7, 1.0, 1.5])  # α
_EXPONENT = np.array([0.01, 0.03, 0.1, 0.3, 1.0])  # b of e^−bk
SHAPES = len(_INVERSE) + len(_POWER) + len(_EXPONENT)


def shapes(k: Floats) -> Floats:
    """φ(k) for every shape: k (...) in report intervals, >= 0; returns (..., SHAPES), 1 at k = 0, falling to 0."""
    k = np.asarray(k, dtype=np.float64)[..., None]
    return np.concatenate([_INVERSE / (k + _INVERSE), (k + 1.0) ** -_POWER, np.exp(-_EXPONENT * k)], axis=-1)


@dataclass(frozen=True, slots=True)
class CurveFit:
    """Fits of J jobs: amplitude, asymptote and mixture weight, each (J × SHAPES)."""

    amplitude: Floats
    asymptote: Floats
    weight: Floats

    def at(self, k: Floats) -> Floats:
        """Expected loss at k (J), in report intervals."""
        values = self.asymptote + self.amplitude * shapes(k)
        return np.asarray((self.weight * values).sum(axis=1))

    def limit(self) -> Floats:
        """Expected asymptote (J)."""
        return np.asarray((self.weight * self.asymptote).sum(axis=1))


def fit_curves(k: Floats, loss: Floats, valid: Floats, floor: Floats) -> CurveFit:
    """Fit J curves at once.

    `k`, `loss`, `valid` (J × W): points oldest to newest, right-aligned; `valid` is 1.0 where there is a point. `floor`
    (J): the asymptote is not below it. Rows with fewer than MIN_POINTS points get flat curves at their mean.
    """
    age = np.cumsum(valid[:, ::-1], axis=1)[:, ::-1] - 1.0
    w = valid * DECAY ** np.maximum(age, 0.0)
    y = np.where(valid > 0, loss, 0.0)
    phi = shapes(np.where(valid > 0, k, 0.0))
    s0 = w.sum(axis=1)[:, None]
    s0 = np.maximum(s0, 1e-12)
    sp = np.einsum("jw,jws->js", w, phi)
    spp = np.einsum("jw,jws->js", w, phi * phi)
    sy = (w * y).sum(axis=1)[:, None]
    spy = np.einsum("jw,jws->js", w * y, phi)
    syy = (w * y * y).sum(axis=1)[:, None]
    spread = spp - sp * sp / s0
    with np.errstate(divide="ignore", invalid="ignore"):
        amplitude = np.where(spread > 1e-12, (spy - sp * sy / s0) / spread, 0.0)
    amplitude = np.maximum(np.nan_to_num(amplitude), 0.0)
    asymptote = (sy - amplitude * sp) / s0
    low = asymptote < floor[:, None]
    with np.errstate(divide="ignore", invalid="ignore"):
        pinned = np.where(spp > 0, (spy - floor[:, None] * sp) / spp, 0.0)
    amplitude = np.where(low, np.maximum(np.nan_to_num(pinned), 0.0), amplitude)
    asymptote = np.where(low, floor[:, None], asymptote)
    rss = syy - 2 * amplitude * spy - 2 * asymptote * sy
    rss = rss + amplitude**2 * spp + 2 * amplitude * asymptote * sp + asymptote**2 * s0
    scale = np.maximum(syy / s0, 1e-12)
    # All shapes have the same number of parameters: Akaike weights compare n/2·log(RSS) alone.
    log_likelihood = -0.5 * s0 * np.log(np.maximum(rss / s0, 1e-8 * scale))
    log_likelihood -= log_likelihood.max(axis=1, keepdims=True)
    weight = np.exp(log_likelihood)
    weight /= weight.sum(axis=1, keepdims=True)
    return CurveFit(amplitude, asymptote, weight)


def steps_until_flat(fit: CurveFit, k: Floats, drop: Floats, longest: float) -> Floats:
    """Report intervals (J) until the expected loss lies within `drop` (J) of its asymptote; at most `longest`.

    Optimus ends a job when its fitted loss changes by less than a threshold; bisection on the falling mixture.
    """
    low, high = np.zeros_like(k), np.full_like(k, longest)
    target = fit.limit() + drop
    for _ in range(24):
        middle = (low + high) / 2
        above = fit.at(k + middle) > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return high
