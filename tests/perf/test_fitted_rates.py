"""Rates that nobody knew at the start: what instances see of them, and what the scheduler makes of what they tell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tierline.core.stage_times import BatchShape
from tierline.perf.device_times import times_of
from tierline.perf.fitted_rates import ENOUGH, FittedRates, ToldRates, parts_of, refitted, scaled
from tierline.perf.parts_fit import LEAST, MOST
from tierline.perf.serving_demand import StageRates
from tierline.perf.serving_profile import Linear
from tierline.testing.profiles import MADE_UP

PRIOR = StageRates()
FACTORS = (3.0, 1 / 3, 3.0, 1.0, 1 / 3)  # of iterations, prompts, decodes, contexts, images
TRUE = scaled(PRIOR, FACTORS)


def seen(rng: np.random.Generator) -> BatchShape:
    decodes = int(rng.integers(0, 60))
    chunks = tuple(
        (int(rng.integers(1, 800)), int(rng.integers(0, 500))) for _ in range(rng.integers(0 if decodes else 1, 3))
    )
    return BatchShape(chunks, decodes, decodes * int(rng.integers(1, 2000)))


def learn(fitted: FittedRates, seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        batch = seen(rng)
        noise = 100.0 if rng.random() < 0.02 else float(np.exp(rng.normal(0, 0.05)))
        fitted.observe(batch, sum(parts_of(TRUE, batch)) * noise)
        fitted.observe_image(600, TRUE.image_s(600) * noise)


def test_rates_that_are_wrong_by_three_are_found_in_spite_of_outliers() -> None:
    told, heard = ToldRates(PRIOR), PRIOR
    for seed in range(3):
        fitted = FittedRates()
        learn(fitted, seed, 4000)
        heard = told.hear(f"i{seed}", fitted.news())
    for tokens in (100, 1000, 3000):
        assert heard.prefill_s(tokens) == pytest.approx(TRUE.prefill_s(tokens), rel=0.1)
        assert heard.image_s(tokens) == pytest.approx(TRUE.image_s(tokens), rel=0.1)
    for decodes in (1, 16, 60):
        assert heard.decode_s(decodes, 800 * decodes) == pytest.approx(TRUE.decode_s(decodes, 800 * decodes), rel=0.1)
    assert replace(heard, **{name: getattr(PRIOR, name) for name in ("transfer_base_s", "transfer_byte_s")}) == heard


def test_an_instance_tells_when_it_knows_enough_and_there_is_news() -> None:
    fitted = FittedRates()
    learn(fitted, 1, 3)
    assert fitted.news() == ()
    learn(fitted, 2, ENOUGH - 4)
    *iterations, image = fitted.news()
    assert iterations == [0.0] * 4 and image < 0.5
    learn(fitted, 3, 1)
    first = fitted.news()
    assert len(first) == 5 and first[0] > 1.5
    assert fitted.news() == (), "told already"
    learn(fitted, 3, 4000)
    assert fitted.news() != first


def test_what_an_instance_never_does_it_knows_nothing_of() -> None:
    decoder, encoder, told = FittedRates(), FittedRates(), ToldRates(PRIOR)
    for number in range(1, 500):
        batch = BatchShape((), 1 + number % 60, 1000 * (1 + number % 7))
        decoder.observe(batch, sum(parts_of(TRUE, batch)))
        encoder.observe_image(number, TRUE.image_s(number))
    known = decoder.news()
    assert known[0] > 2 and known[1] == known[4] == 0
    rates = told.hear("i0", known)
    assert rates.prefill_s(1000) == PRIOR.prefill_s(1000) and rates.image_s(9) == PRIOR.image_s(9)
    rates = told.hear("i1", encoder.news())
    assert rates.image_s(600) == pytest.approx(TRUE.image_s(600), rel=0.1)
    assert rates.decode_s(16, 9000) == pytest.approx(TRUE.decode_s(16, 9000), rel=0.1)


def test_the_middle_counts_and_who_is_gone_does_not() -> None:
    told = ToldRates(PRIOR)
    told.hear("i0", (2.0,) * 5)
    told.hear("i1", (9.0,) * 5)
    assert told.hear("i2", (3.0,) * 5) == scaled(PRIOR, (3.0,) * 5)
    told.forget("i1")
    assert told.hear("i2", (4.0,) * 5) == scaled(PRIOR, (3.0,) * 5)


def test_no_word_brings_rates_beyond_the_limits() -> None:
    assert scaled(PRIOR, (1e9, float("nan"), 0.0, -1.0, float("inf"))) == scaled(
        PRIOR, (MOST, LEAST, LEAST, LEAST, MOST)
    )


def test_a_profile_takes_the_factors_part_by_part() -> None:
    linear = Linear(1.0, 0.1, 0.4, 10, 0.001, 0.02, 0.0001, prompts_s=0.3, encode_s=2.0, patch_s=0.5, patch_pair_s=0.01)
    profile = replace(MADE_UP, operators=None, linear=linear)
    plain, now = times_of(profile), times_of(refitted(profile, (2.0, 3.0, 5.0, 7.0, 11.0)))
    batch = BatchShape(chunks=((20, 100),), decodes=3, decode_context=9000)
    # of iteration, prompts, tokens, beyond the knee, pairs, sequences, context
    factors = (2.0, 3.0, 3.0, 3.0, 3.0, 5.0, 7.0)
    assert now.parts(batch) == pytest.approx([each * by for each, by in zip(plain.parts(batch), factors, strict=True)])
    assert now.encode_s((10, 20)) == pytest.approx(11 * plain.encode_s((10, 20)))
