"""Stage times that follow what is seen: one factor for each part of an iteration, fitted anew with every iteration.

A Kalman filter over the factors (recursive least squares whose memory fades), on relative errors, so that short iterations
weigh as much as long ones. An iteration that is far off, as when another program had the processor, counts as one at three
standard deviations. Factors stay within `LEAST`..`MOST`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from tierline.core.stage_times import BatchShape, StageTimes
from tierline.perf.serving_profile import ServingProfile

LEAST, MOST = 0.02, 50.0
PRIOR_VARIANCE = 0.25  # of a factor, around 1
DRIFT_VARIANCE = 1e-5  # that an iteration adds: some hundreds of them are remembered
NOISE_VARIANCE, NOISE_LEAST, NOISE_MEMORY = 0.01, 1e-4, 0.02
CLIP = 3.0
NEWS = 0.05  # by which a factor has to have changed for `version` to


class PartedTimes(StageTimes, Protocol):
    """Stage times whose iterations are a sum of parts, in a fixed order."""

    @property
    def profile(self) -> ServingProfile: ...

    def parts(self, batch: BatchShape) -> tuple[float, ...]:
        """The terms that `iteration_s` adds up."""
        ...


class OnlineTimes:
    """`core.stage_times.StageTimes` over others; `observe` changes what it predicts from then on. `version` rises when that
    has changed enough to matter, so that whoever keeps answers knows when to ask again."""

    def __init__(self, times: PartedTimes) -> None:
        self._times = times
        count = len(times.parts(BatchShape(decodes=1)))
        self._factors: NDArray[np.float64] = np.ones(count)
        self._variance: NDArray[np.float64] = np.eye(count) * PRIOR_VARIANCE
        self._noise = NOISE_VARIANCE
        self._as_list = [1.0] * count
        self._told = self._factors
        self.version = 0

    # --- what was seen

    @property
    def factors(self) -> tuple[float, ...]:
        """By which the parts of an iteration are multiplied."""
        return tuple(self._as_list)

    def observe(self, batch: BatchShape, seconds: float) -> None:
        """An iteration took so long."""
        parts = np.array(self._times.parts(batch))
        predicted = float(parts @ self._factors)
        if predicted <= 0 or not 0 < seconds < float("inf"):
            return
        share = parts / predicted
        error = seconds / predicted - 1.0
        spread = self._variance @ share
        total = float(share @ spread) + self._noise
        bound = CLIP * total**0.5
        error = min(bound, max(-bound, error))
        self._noise += NOISE_MEMORY * (max(NOISE_LEAST, error * error) - self._noise)
        gain = spread / total
        self._factors = np.clip(self._factors + gain * error, LEAST, MOST)
        self._variance -= np.outer(gain, spread)
        self._variance.flat[:: len(parts) + 1] += DRIFT_VARIANCE
        most = self._variance.diagonal().max()
        if most > PRIOR_VARIANCE:  # what is never seen must not become ever less certain
            self._variance *= PRIOR_VARIANCE / most
        self._as_list = self._factors.tolist()
        if np.max(np.abs(self._factors / self._told - 1.0)) > NEWS:
            self._told = self._factors
            self.version += 1

    # --- sizes

    @property
    def profile(self) -> ServingProfile:
        return self._times.profile

    @property
    def kv_token_bytes(self) -> int:
        return self._times.kv_token_bytes

    @property
    def embedding_token_bytes(self) -> int:
        return self._times.embedding_token_bytes

    @property
    def patches_per_token(self) -> int:
        return self._times.patches_per_token

    @property
    def kv_tokens(self) -> int:
        return self._times.kv_tokens

    # --- times

    def iteration_s(self, batch: BatchShape) -> float:
        return sum(map(float.__mul__, self._times.parts(batch), self._as_list))

    def decodes_s(self, decodes: int, decode_context: int, steps: int) -> float:
        """The closed form of `times`, times the factor of its first and last iteration together: the sum of `iteration_s`
        where attention is linear in the context."""
        plain = self._times.decodes_s(decodes, decode_context, steps)
        if not plain:
            return 0.0
        batches = [BatchShape((), decodes, decode_context + decodes * place) for place in (0, steps - 1)]
        return plain * sum(map(self.iteration_s, batches)) / sum(map(self._times.iteration_s, batches))

    def encode_s(self, patches: Sequence[int]) -> float:
        return self._times.encode_s(patches)

    def prepare_s(self, patches: int) -> float:
        return self._times.prepare_s(patches)

    def transfer_s(self, size_bytes: int) -> float:
        return self._times.transfer_s(size_bytes)
