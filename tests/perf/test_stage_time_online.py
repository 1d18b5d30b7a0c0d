"""Times by coefficients, times that follow what is seen, times in which a position stands for several, and two kinds of work
on one device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.core.errors import InvalidInput
from tierline.core.stage_times import BatchShape
from tierline.perf.device_sharing import Overlap, Work
from tierline.perf.device_times import stage_times, times_of
from tierline.perf.scaled_times import ScaledTimes
from tierline.perf.serving_profile import (
    Linear,
    Preparation,
    save_profile,
)
from tierline.perf.stage_time_online import OnlineTimes
from tierline.testing.profiles import MADE_UP

PROFILE = replace(
    MADE_UP,
    device="cpu",
    preparation=Preparation(0.25, 0.125),
    linear=Linear(
        iteration_s=1.0, token_s=0.1, token_beyond_s=0.4, knee_tokens=10, pair_s=0.001, sequence_s=0.02, context_s=0.0001,
        prompts_s=0.3, encode_s=2.0, patch_s=0.5, patch_pair_s=0.01,
    ),
)  # fmt: skip
BATCHES = (
    BatchShape(chunks=((12, 0),)),
    BatchShape(chunks=((4, 0), (3, 30))),
    BatchShape(decodes=8, decode_context=4000),
    BatchShape(chunks=((20, 100),), decodes=3, decode_context=9000),
    BatchShape(decodes=1, decode_context=1),
)


def test_coefficients_add_up() -> None:
    times = times_of(PROFILE)
    # 12 tokens, 2 beyond the knee, 78 pairs, 1 sequence
    assert times.iteration_s(BATCHES[0]) == pytest.approx(1 + 0.3 + 1.2 + 0.8 + 0.078 + 0.02)
    # 7 tokens; 4 x 5 / 2 + 3 x 30 + 3 x 4 / 2 pairs; 2 sequences
    assert times.iteration_s(BATCHES[1]) == pytest.approx(1 + 0.3 + 0.7 + 0.106 + 0.04)
    assert times.iteration_s(BATCHES[2]) == pytest.approx(1 + 0.8 + 0.16 + 0.4)
    assert times.iteration_s(BatchShape()) == 0.0
    assert times.encode_s((10, 20)) == pytest.approx(2 + 5 + 1 + 10 + 4)
    assert (times.prepare_s(2), times.transfer_s(200)) == (0.5, 2.5)
    for batch in BATCHES:
        assert sum(times.parts(batch)) == pytest.approx(times.iteration_s(batch))


def test_parts_of_operators_add_up() -> None:
    times = stage_times("h100:Qwen2.5-VL-7B")
    for batch in BATCHES:
        assert sum(times.parts(batch)) == pytest.approx(times.iteration_s(batch), rel=1e-12)


def test_a_profile_without_an_encoder_times_no_image(tmp_path: Path) -> None:
    assert PROFILE.linear is not None
    text = replace(PROFILE, linear=replace(PROFILE.linear, encode_s=0.0, patch_s=0.0, patch_pair_s=0.0))
    save_profile(text, tmp_path / "text.toml")
    times = stage_times(str(tmp_path / "text.toml"))
    with pytest.raises(InvalidInput, match="knows of no encoder"):
        times.encode_s((4,))


@settings(max_examples=25)
@given(st.integers(1, 300), st.integers(0, 5000), st.integers(1, 200), st.sampled_from([1, 3, 16]))
def test_decoding_in_closed_form(decodes: int, mean: int, steps: int, positions: int) -> None:
    linear, operators = times_of(PROFILE), stage_times("h100:Qwen2.5-VL-7B")
    context = decodes * mean

    def singly(times: ScaledTimes) -> float:
        return sum(times.iteration_s(BatchShape((), decodes, context + decodes * step)) for step in range(steps))

    scaled = ScaledTimes(linear, positions, 2.0)
    assert scaled.decodes_s(decodes, context, steps) == pytest.approx(singly(scaled), rel=1e-9)
    # Attention measured in pieces: the same but for the corners of its curve.
    curved = ScaledTimes(operators, positions)
    assert curved.decodes_s(decodes, context, steps) == pytest.approx(
        singly(curved), rel=2e-3 if positions > 1 else 1e-9
    )


def test_positions_stand_for_several() -> None:
    plain = times_of(PROFILE)
    scaled = ScaledTimes(plain, 4, 10.0)
    for batch in BATCHES:
        whole = BatchShape(
            tuple((4 * new, 4 * cached) for new, cached in batch.chunks), batch.decodes, 4 * batch.decode_context
        )
        assert scaled.iteration_s(batch) == pytest.approx(10 * plain.iteration_s(whole))
    assert scaled.encode_s((5,)) == pytest.approx(10 * plain.encode_s((20,)))
    assert scaled.transfer_s(3 * scaled.kv_token_bytes) == pytest.approx(
        10 * plain.transfer_s(12 * plain.kv_token_bytes)
    )
    assert (scaled.kv_tokens, scaled.kv_token_bytes, scaled.embedding_token_bytes) == (125, 32, 16)
    for positions, stretch in ((0, 1.0), (1, 0.0), (1, float("nan"))):
        with pytest.raises(InvalidInput, match="is allowed"):
            ScaledTimes(plain, positions, stretch)


# --- what is seen


def seen(rng: np.random.Generator) -> BatchShape:
    decodes = int(rng.integers(0, 40))
    chunks = tuple(
        (int(rng.integers(1, 200)), int(rng.integers(0, 500))) for _ in range(rng.integers(0 if decodes else 1, 3))
    )
    return BatchShape(chunks, decodes, decodes * int(rng.integers(1, 2000)))


@pytest.mark.parametrize("name", ["linear", "operators"])
def test_a_machine_half_as_fast_is_learnt_in_spite_of_outliers(name: str) -> None:
    plain = times_of(PROFILE) if name == "linear" else stage_times("l40s:Qwen2.5-VL-7B")
    times, rng = OnlineTimes(plain), np.random.default_rng(3)
    for _ in range(600):
        batch = seen(rng)
        noise = 100.0 if rng.random() < 0.02 else float(np.exp(rng.normal(0, 0.05)))
        times.observe(batch, 2 * plain.iteration_s(batch) * noise)
    errors = [
        times.iteration_s(batch) / (2 * plain.iteration_s(batch)) - 1 for batch in (seen(rng) for _ in range(100))
    ]
    assert np.median(np.abs(errors)) < 0.03 and np.max(np.abs(errors)) < 0.1
    assert times.decodes_s(8, 900, 50) == pytest.approx(2 * plain.decodes_s(8, 900, 50), rel=0.1)


def test_one_part_is_learnt_apart_from_the_others() -> None:
    """Attention over contexts takes three times as long as the profile says, the rest as long as it says."""
    plain = times_of(PROFILE)
    assert PROFILE.linear is not None
    true = times_of(replace(PROFILE, linear=replace(PROFILE.linear, context_s=3 * PROFILE.linear.context_s)))
    times, rng = OnlineTimes(plain), np.random.default_rng(4)
    for _ in range(2000):
        batch = seen(rng)
        times.observe(batch, true.iteration_s(batch))
    *others, context = times.factors
    assert context == pytest.approx(3, rel=0.05)
    singly = [times.iteration_s(BatchShape((), 8, 900 + 8 * step)) for step in range(50)]
    assert times.decodes_s(8, 900, 50) == pytest.approx(sum(singly), rel=1e-9)
    assert others[0] == pytest.approx(1, rel=0.1) and others[1] == pytest.approx(1, rel=0.1)


def test_what_cannot_be_learnt_from_is_left_out() -> None:
    times = OnlineTimes(times_of(PROFILE))
    for batch, seconds in (
        (BatchShape(), 1.0),
        (BATCHES[0], 0.0),
        (BATCHES[0], float("nan")),
        (BATCHES[0], float("inf")),
    ):
        times.observe(batch, seconds)
    assert times.factors == (1.0,) * 7
    for _ in range(5000):  # the same again and again teaches nothing of the rest, and nothing runs away
        times.observe(BATCHES[4], 10.0)
    assert times.iteration_s(BATCHES[4]) == pytest.approx(10, rel=0.01)
    assert all(0.02 <= factor <= 50 for factor in times.factors)
    assert times.encode_s((10,)) == times_of(PROFILE).encode_s((10,))


# --- two kinds of work on one device


def test_work_that_changes_speed() -> None:
    work = Work(100.0, 1000)
    assert work.end_ns == 1100
    work.change(1050, 2.0)  # half is done, the rest takes twice as long
    assert work.end_ns == 1150
    work.change(1100, 1.0)
    assert work.end_ns == 1125


def test_encoder_and_iteration_share_arithmetic_and_bandwidth() -> None:
    overlap = Overlap()
    assert overlap.slowdown(1) == pytest.approx(1.3)  # decodes: the bandwidth is theirs
    assert overlap.slowdown(2048) == pytest.approx(1.8)  # a large chunk: so is the arithmetic
    assert overlap.slowdown(0) == pytest.approx(1.3)
    assert all(1 <= overlap.slowdown(tokens) <= 2 for tokens in range(0, 5000, 50))
