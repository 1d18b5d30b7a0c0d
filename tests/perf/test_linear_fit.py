"""Coefficients are found again in measurements that are noisy and now and then far off."""

from __future__ import annotations

import numpy as np
import pytest

from tierline.core.errors import InvalidInput
from tierline.core.stage_times import BatchShape
from tierline.perf.linear_fit import Measured, MeasuredImage, fit_linear
from tierline.perf.serving_profile import Linear

TRUE = Linear(
    iteration_s=4e-3, token_s=2e-5, token_beyond_s=6e-5, knee_tokens=128, pair_s=3e-8, sequence_s=1e-4, context_s=4e-7,
    encode_s=2e-3, patch_s=5e-5, patch_pair_s=1e-8,
)  # fmt: skip


def predicted(by: Linear, batch: BatchShape) -> float:
    tokens = batch.decodes + sum(new for new, _ in batch.chunks)
    pairs = sum(new * (cached + (new + 1) / 2) for new, cached in batch.chunks)
    return (
        by.iteration_s + tokens * by.token_s + max(0, tokens - by.knee_tokens) * by.token_beyond_s + pairs * by.pair_s
        + (batch.decodes + len(batch.chunks)) * by.sequence_s + batch.decode_context * by.context_s
    )  # fmt: skip


def seconds(batch: BatchShape) -> float:
    return predicted(TRUE, batch)


def drawn(rng: np.random.Generator, count: int) -> list[BatchShape]:
    found = []
    for _ in range(count):
        decodes = int(2 ** rng.uniform(0, 6)) if rng.random() < 0.7 else 0
        chunks = tuple(
            (int(2 ** rng.uniform(0, 10)), int(rng.integers(0, 1000)))
            for _ in range(rng.integers(0 if decodes else 1, 3))
        )
        found.append(BatchShape(chunks, decodes, decodes * int(rng.integers(1, 1000))))
    return found


def test_coefficients_are_found_again() -> None:
    rng = np.random.default_rng(2)
    iterations = [Measured(batch, seconds(batch)) for batch in drawn(rng, 200)]
    images = [MeasuredImage(n, 2e-3 + 5e-5 * n + 1e-8 * n * n) for n in (64, 256, 1024, 4096)]
    found = fit_linear(iterations, images)
    assert found.knee_tokens == 128
    for name in ("iteration_s", "token_s", "token_beyond_s", "pair_s", "sequence_s", "context_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-3), name
    for name in ("encode_s", "patch_s", "patch_pair_s"):
        assert getattr(found, name) == pytest.approx(getattr(TRUE, name), rel=1e-3), name


def test_noise_and_outliers_do_little() -> None:
    rng = np.random.default_rng(3)
    iterations = [
        Measured(batch, seconds(batch) * (5.0 if rng.random() < 0.08 else float(np.exp(rng.normal(0, 0.05)))))
        for batch in drawn(rng, 600)
    ]
    found = fit_linear(iterations)
    assert found.token_s + found.token_beyond_s > 0
    errors = [abs(predicted(found, batch) / seconds(batch) - 1) for batch in drawn(rng, 200)]
    assert np.median(errors) < 0.03 and max(errors) < 0.15
    assert (found.encode_s, found.patch_s, found.patch_pair_s) == (0.0, 0.0, 0.0)


def test_images_of_one_size_give_a_time_a_patch() -> None:
    iterations = [Measured(batch, seconds(batch)) for batch in drawn(np.random.default_rng(4), 50)]
    found = fit_linear(iterations, [MeasuredImage(256, each) for each in (0.5, 0.512, 9.0)])
    assert (found.encode_s, found.patch_s, found.patch_pair_s) == (0.0, 0.002, 0.0)


def test_too_little_was_measured() -> None:
    with pytest.raises(InvalidInput, match="3 iterations were measured, and 12 are needed"):
        fit_linear([Measured(BatchShape(decodes=1), 1.0)] * 3)
