"""From measured iterations to the coefficients of a profile: least squares of relative errors, none of them negative."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from tierline.core.errors import InvalidInput
from tierline.core.stage_times import BatchShape
from tierline.perf.serving_profile import Linear

Matrix = NDArray[np.float64]
KNEES = (0, 16, 32, 64, 128, 256, 512, 1024)  # tokens from which on an iteration may be bound by arithmetic
ROUNDS = 8  # in which far-off measurements lose their weight
CLIP = 2.0  # standard deviations from which on they do
LEAST_ITERATIONS = 12


@dataclass(frozen=True, slots=True)
class Measured:
    """An iteration and how long it took."""

    batch: BatchShape
    seconds: float


@dataclass(frozen=True, slots=True)
class MeasuredImage:
    """An image through the encoder, alone."""

    patches: int
    seconds: float


def fit_linear(iterations: Sequence[Measured], images: Sequence[MeasuredImage] = ()) -> Linear:
    """Coefficients of `perf.stage_time_linear`. Raises `InvalidInput` where too little was measured."""
    if len(iterations) < LEAST_ITERATIONS:
        raise InvalidInput(
            f"{len(iterations)} iterations were measured, and {LEAST_ITERATIONS} are needed at least: give it more time."
        )
    seconds = np.array([each.seconds for each in iterations])
    tried = []
    for knee in KNEES:
        found, error = _robust(np.array([_features(each.batch, knee) for each in iterations]), seconds)
        tried.append((error, knee, found))
    _, knee, found = min(tried, key=lambda each: each[0])
    encode_s, patch_s, patch_pair_s = _fit_images(images) if images else (0.0, 0.0, 0.0)
    return Linear(
        iteration_s=float(found[0]),
        token_s=float(found[1]),
        token_beyond_s=float(found[2]),
        knee_tokens=knee,
        pair_s=float(found[3]),
        sequence_s=float(found[4]),
        context_s=float(found[5]),
        prompts_s=float(found[6]),
        encode_s=encode_s,
        patch_s=patch_s,
        patch_pair_s=patch_pair_s,
    )


def _features(batch: BatchShape, knee: int) -> tuple[float, ...]:
    tokens = batch.decodes + sum(new for new, _ in batch.chunks)
    pairs = sum(new * (cached + (new + 1) / 2) for new, cached in batch.chunks)
    rows = batch.decodes + len(batch.chunks)
    return 1.0, tokens, max(0, tokens - knee), pairs, rows, batch.decode_context, float(bool(batch.chunks))


def _fit_images(images: Sequence[MeasuredImage]) -> tuple[float, float, float]:
    """Of images of one size only the time of a patch can be told; 1 ns at least, for an encoder that is there."""
    sizes = np.array([float(each.patches) for each in images])
    seconds = np.array([each.seconds for each in images])
    if len(set(sizes.tolist())) < 3:
        return 0.0, max(1e-9, float(np.median(seconds / sizes))), 0.0
    found, _ = _robust(np.column_stack((np.ones_like(sizes), sizes, sizes**2)), seconds)
    return float(found[0]), max(1e-9, float(found[1])), float(found[2])


def _robust(features: Matrix, seconds: Matrix) -> tuple[Matrix, float]:
    """Coefficients, none negative, of least squares whose far-off measurements weigh less (Huber), and the mean of the
    squared relative errors, each at most that of `CLIP` deviations."""
    relative = features / seconds[:, None]
    scale = np.where(relative.max(axis=0) > 0, relative.max(axis=0), 1.0)
    relative = relative / scale
    weights = np.ones(len(seconds))
    found, bound, errors = np.zeros(features.shape[1]), 1.0, np.ones(len(seconds))
    for _ in range(ROUNDS):
        found = nnls(relative * weights[:, None], weights)[0]
        errors = np.abs(relative @ found - 1.0)
        bound = max(1e-6, CLIP * 1.4826 * float(np.median(errors)))
        weights = np.sqrt(np.minimum(1.0, bound / np.maximum(errors, 1e-12)))
    return found / scale, float(np.mean(np.minimum(errors, bound) ** 2)) if bound < 1 else float("inf")
