"""Factors of a sum of predicted parts that follow what is seen, fitted anew with every measurement.

A Kalman filter over the factors (recursive least squares whose memory fades), on relative errors, so that short iterations
weigh as much as long ones. A measurement that is far off, as when another program had the processor, counts as one at three
standard deviations. Factors stay within `LEAST`..`MOST`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

LEAST, MOST = 0.02, 50.0
PRIOR_VARIANCE = 0.25  # of a factor, around 1
KNOWN_VARIANCE = PRIOR_VARIANCE / 2
DRIFT_VARIANCE = 1e-5  # that a measurement adds: some hundreds of them are remembered
NOISE_VARIANCE, NOISE_LEAST, NOISE_MEMORY = 0.01, 1e-4, 0.02
CLIP = 3.0
NEWS = 0.05  # by which a factor has to have changed for `version` to


class PartsFit:
    """`count` factors, 1 at first. `version` rises when one has changed enough to matter; `seen` counts measurements."""

    def __init__(self, count: int) -> None:
        self._factors: NDArray[np.float64] = np.ones(count)
        self._variance: NDArray[np.float64] = np.eye(count) * PRIOR_VARIANCE
        self._noise = NOISE_VARIANCE
        self._told = self._factors
        self.factors: list[float] = [1.0] * count
        self.version = 0
        self.seen = 0

    def known(self, least: int) -> list[float]:
        """The factors; 0 for those of which little was seen, and for all before `least` measurements."""
        if self.seen < least:
            return [0.0] * len(self.factors)
        return [
            factor if variance < KNOWN_VARIANCE else 0.0
            for factor, variance in zip(self.factors, self._variance.diagonal().tolist(), strict=True)
        ]

    def observe(self, parts: Sequence[float], seconds: float) -> None:
        """What was predicted as the sum of `parts`, each times its factor, took so long."""
        each = np.array(parts)
        predicted = float(each @ self._factors)
        if predicted <= 0 or not 0 < seconds < float("inf"):
            return
        share = each / predicted
        error = seconds / predicted - 1.0
        spread = self._variance @ share
        total = float(share @ spread) + self._noise
        bound = CLIP * total**0.5
        error = min(bound, max(-bound, error))
        self._noise += NOISE_MEMORY * (max(NOISE_LEAST, error * error) - self._noise)
        gain = spread / total
        self._factors = np.clip(self._factors + gain * error, LEAST, MOST)
        self._variance -= np.outer(gain, spread)
        self._variance.flat[:: len(each) + 1] += DRIFT_VARIANCE
        most = self._variance.diagonal().max()
        if most > PRIOR_VARIANCE:  # what is never seen must not become ever less certain
            self._variance *= PRIOR_VARIANCE / most
        self.factors = self._factors.tolist()
        self.seen += 1
        if np.max(np.abs(self._factors / self._told - 1.0)) > NEWS:
            self._told = self._factors
            self.version += 1
