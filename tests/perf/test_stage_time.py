"""Stage times: known values of hand-made curves, the promises of the contract over every profile in the package, speed-ups of
the closed forms, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from tierline.core.errors import InvalidInput, NotFound, UnknownName
from tierline.core.stage_times import BatchShape
from tierline.perf.curves_of_time import Curve, Knots, rising, thinned
from tierline.perf.device_times import packaged_name, profile_named, stage_times, times_of
from tierline.perf.model_shapes import SHAPES, patches_per_token, shape_named, shape_of
from tierline.perf.serving_demand import StageRates
from tierline.perf.serving_devices import DEVICES
from tierline.perf.serving_profile import (
    EncoderOperators,
    Generation,
    Operators,
    Overhead,
    Preparation,
    ServingProfile,
    format_profile,
    load_profile,
    parse_profile,
    save_profile,
)
from tierline.testing.profiles import MADE_UP

PROFILES = sorted(
    f"{device}:{shape.name}"
    for device in DEVICES
    for shape in SHAPES.values()
    if DEVICES[device].encodes or shape.vision is None
)


def made_up() -> ServingProfile:
    """Round figures: 1 ms an iteration and 0.1 ms a token, a sequence costs 10 ms of output layer and 1 ms of overhead."""
    return replace(
        MADE_UP,
        licence="Apache-2.0",
        preparation=Preparation(0.25, 0.125),
        overhead=Overhead(0.1, 0.001, 0.2),
        linear=None,
        operators=Operators(
            matrices=Knots((1.0, 10_001.0), (0.001, 1.001)),
            head=Knots((1.0, 101.0), (0.01, 1.01)),
            context=Knots((0.0, 1000.0), (0.0, 1.0)),
            launch_s=0.05,
            group=128,
            generation=(
                Generation(1, Knots((0.0, 100.0, 200.0), (0.1, 0.1, 0.2))),
                Generation(3, Knots((0.0, 100.0), (0.3, 0.5))),
            ),
            encoder=EncoderOperators(
                matrices=Knots((0.0, 100.0), (0.0, 10.0)),
                attention=Knots((0.0, 50.0), (0.0, 100.0)),
                launch_s=0.3,
                window_patches=8,
                windows=Knots((1.0, 11.0), (1.0, 2.0)),
            ),
        ),
    )


# --- known values


def test_an_iteration_is_the_sum_of_its_parts() -> None:
    times = times_of(made_up())
    # 10 tokens: 0.0019; 1 sequence: 0.001 + 0.01; 55 pairs: 0.055; launch 0.05; iteration 0.1
    assert times.iteration_s(BatchShape(chunks=((10, 0),))) == pytest.approx(0.2179)
    # The same chunk behind 20 tokens: 10 x 20 pairs more.
    assert times.iteration_s(BatchShape(chunks=((10, 20),))) == pytest.approx(0.4179)
    # One sequence at 150: generation 0.15 in place of the launch, 1 token: 0.001
    assert times.iteration_s(BatchShape(decodes=1, decode_context=150)) == pytest.approx(0.1 + 0.001 + 0.011 + 0.15)
    # Mixed: 11 tokens 0.002, 2 sequences 0.022, both kinds of attention, the launch only once
    mixed = BatchShape(chunks=((10, 0),), decodes=1, decode_context=150)
    assert times.iteration_s(mixed) == pytest.approx(0.1 + 0.002 + 0.022 + 0.055 + 0.15)
    assert times.iteration_s(BatchShape()) == 0.0


def test_two_sequences_lie_between_one_and_three() -> None:
    times = times_of(made_up())
    # At a mean of 100: one takes 0.1, three take 0.5. At 200: 0.2 and, along the last slope, 0.7.
    assert times.iteration_s(BatchShape(decodes=2, decode_context=200)) == pytest.approx(0.1 + 0.0011 + 0.022 + 0.3)
    assert times.iteration_s(BatchShape(decodes=2, decode_context=400)) == pytest.approx(0.1 + 0.0011 + 0.022 + 0.45)
    # Six take twice what three do.
    assert times.iteration_s(BatchShape(decodes=6, decode_context=600)) == pytest.approx(0.1 + 0.0015 + 0.066 + 1.0)


def test_few_new_tokens_fill_a_tile_with_their_group() -> None:
    operators = made_up().operators
    assert operators is not None
    wide = times_of(replace(made_up(), operators=replace(operators, group=16)))  # 8 tokens fill 128 rows
    four, eight = (wide.iteration_s(BatchShape(chunks=((new, 50),))) for new in (4, 8))
    # Behind 50 tokens both cost 8 x 50 pairs, beside 10 and 36 of their own and 0.1 ms a token.
    assert eight - four == pytest.approx((36 - 10) / 1000 + 4e-4)


def test_images_prepared_moved_and_encoded() -> None:
    times = times_of(made_up())
    # 20 patches: overhead 0.2, launch 0.3, matrices 2, attention 40, 3 windows 1.2
    assert times.encode_s((20,)) == pytest.approx(43.7)
    # Together with 40: matrices 6, attention 40 + 80, 3 + 5 windows 1.7, the rest once
    assert times.encode_s((20, 40)) == pytest.approx(0.5 + 6 + 120 + 1.7)
    assert times.encode_s(()) == 0.0
    assert times.prepare_s(4) == 0.75
    assert times.transfer_s(50) == 1.0
    assert (times.kv_tokens, times.kv_token_bytes, times.embedding_token_bytes) == (500, 8, 4)


def test_curves() -> None:
    curve = Curve(Knots((1.0, 3.0, 4.0), (2.0, 2.0, 5.0)))
    assert [curve.at(size) for size in (0, 1, 2, 3, 3.5, 4, 6)] == [2, 2, 2, 2, 3.5, 5, 11]
    assert curve.total(2.0, 1.0, 4) == 2 + 2 + 5 + 8
    assert rising([1.0, 3.0, 2.0, 4.0]).tolist() == pytest.approx([1, 6**0.5, 6**0.5, 4])
    line = Knots(tuple(map(float, range(1, 20))), tuple(float(3 * size) for size in range(1, 20)))
    assert thinned(line, 0.001) == Knots((1.0, 19.0), (3.0, 57.0))


@given(
    st.lists(st.tuples(st.integers(1, 1000), st.integers(0, 1000)), min_size=2, max_size=8),
    st.floats(0.01, 0.3),
)
def test_thinning_keeps_to_its_tolerance(points: list[tuple[int, int]], tolerance: float) -> None:
    sizes = np.cumsum([step for step, _ in points]).astype(float)
    seconds = 1.0 + np.cumsum([rise for _, rise in points])
    left = Curve(thinned(Knots(tuple(sizes.tolist()), tuple(seconds.tolist())), tolerance))
    for size, wanted in zip(sizes.tolist(), seconds.tolist(), strict=True):
        assert left.at(size) == pytest.approx(wanted, rel=tolerance + 1e-9)


@settings(max_examples=25)
@given(st.integers(1, 700), st.integers(0, 20_000), st.integers(1, 400))
def test_decoding_in_closed_form_is_the_sum_of_its_iterations(decodes: int, mean: int, steps: int) -> None:
    for times in (times_of(made_up()), stage_times("h100:Qwen2.5-VL-7B")):
        context = decodes * mean + decodes // 2
        singly = [times.iteration_s(BatchShape((), decodes, context + decodes * step)) for step in range(steps)]
        assert times.decodes_s(decodes, context, steps) == pytest.approx(sum(singly), rel=1e-9)


# --- every profile in the package


@pytest.mark.parametrize("name", PROFILES)
def test_more_work_never_takes_less_time(name: str) -> None:
    times = stage_times(name)
    rng = np.random.default_rng(1)
    for _ in range(50):
        decodes, mean = int(rng.integers(1, 600)), int(rng.integers(1, 9000))
        new, cached = int(rng.integers(1, 9000)), int(rng.integers(0, 9000))
        batch = BatchShape(((new, cached),), decodes, decodes * mean)
        now = times.iteration_s(batch)
        assert now > 0
        for more in (
            structs.replace(batch, chunks=((new + 50, cached),)),
            structs.replace(batch, chunks=((new, cached + 50),)),
            structs.replace(batch, chunks=((new, cached), (16, 0))),
            structs.replace(batch, decode_context=batch.decode_context + 5000),
        ):
            assert times.iteration_s(more) >= now * (1 - 1e-12)
    if times.profile.encodes:
        taken = [times.encode_s((patches,)) for patches in range(16, 20_000, 500)]
        assert taken == sorted(taken)
        assert times.encode_s((400, 800)) < times.encode_s((400,)) + times.encode_s((800,))
    else:
        with pytest.raises(InvalidInput, match="nothing is known of an encoder"):
            times.encode_s((64,))


@pytest.mark.parametrize("name", PROFILES)
def test_a_mixed_iteration_reads_the_weights_once(name: str) -> None:
    times = stage_times(name)
    chunk, decodes = BatchShape(chunks=((64, 0),)), BatchShape(decodes=16, decode_context=16_000)
    apart = times.iteration_s(chunk) + times.iteration_s(decodes)
    together = times.iteration_s(structs.replace(chunk, decodes=16, decode_context=16_000))
    assert together < 0.75 * apart


def test_figures_of_an_h100_are_those_that_are_known() -> None:
    """Weights of 15.2 GB at 3.35 TB/s take 4.5 ms at the least; a study over the same tables found that encoding costs 0.4
    to 0.6 of prefill, for typical images."""
    times = stage_times("h100:Qwen2.5-VL-7B")
    step = times.iteration_s(BatchShape(decodes=8, decode_context=8192))
    assert 15.2e9 / 3.35e12 < step < 2 * 15.2e9 / 3.35e12
    for patches in (256, 1024, 4096):
        share = times.encode_s((patches,)) / times.iteration_s(BatchShape(chunks=((patches // 4, 0),)))
        assert 0.35 < share < 0.65
    # 2 x 6.5e9 FLOPs a token without embeddings, against the data sheet's 989 TFLOP/s.
    prefill = times.iteration_s(BatchShape(chunks=((4096, 0),)))
    assert 4096 * 13e9 / 989e12 < prefill < 2 * 4096 * 13e9 / 989e12
    assert 150 < times.profile.advice.tipping_tokens < 400
    rates = StageRates.of(times)  # of curves that are thinned
    assert times.profile.advice.tipping_tokens == pytest.approx(rates.tipping_tokens, rel=0.03)
    assert times.kv_token_bytes == 57344


# --- what is refused


def test_profiles_of_others_are_refused(tmp_path: Path) -> None:
    save_profile(made_up(), tmp_path / "mine.toml")
    assert stage_times(str(tmp_path / "mine.toml"), model="abacus", device="paper").kv_tokens == 500
    with pytest.raises(InvalidInput, match="is of model 'abacus', and model 'tiny-vlm' is used"):
        stage_times(str(tmp_path / "mine.toml"), model="tiny-vlm")
    with pytest.raises(InvalidInput, match="is of device 'paper', and device 'h100' is used"):
        stage_times(str(tmp_path / "mine.toml"), device="h100")


def test_names_of_models_and_devices_may_be_long_or_short() -> None:
    name = "h100:Qwen2.5-VL-7B"
    assert stage_times(name, model="Qwen/Qwen2.5-VL-7B-Instruct", device="NVIDIA H100 80GB HBM3").profile.encodes
    for model, device in (("Qwen/Qwen2.5-VL-72B-Instruct", ""), ("Qwen/Qwen2.5-7B-Instruct", ""), ("", "NVIDIA H200")):
        with pytest.raises(InvalidInput, match="the profile is of"):
            stage_times(name, model=model, device=device)


def test_rates_of_a_model_without_an_encoder() -> None:
    assert StageRates.of(stage_times("h100:Llama-3.1-8B")).encode_s(100) == 0.0
    assert StageRates.of(stage_times("h100:LLaVA-1.5-7B")).patches_per_token == 1
    assert StageRates.of(stage_times("h100:Qwen2.5-VL-7B")).encode_s(4096) == pytest.approx(0.0134, rel=0.1)


def test_a_saved_profile_is_read_back_the_same(tmp_path: Path) -> None:
    save_profile(made_up(), tmp_path / "deep" / "mine.toml")
    assert load_profile(tmp_path / "deep" / "mine.toml") == made_up()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("format = 1", "format = 9", "format 9 is given, and 1 is known"),
        ("format = 1", "", "format none is given"),
        ('device = "paper"', "device = ", "is no serving profile"),
        ("kv_tokens = 500", 'kv_tokens = "many"', "is no serving profile"),
        ("kv_tokens = 500", "kv_tokens = 0", "have to be 1 or more"),
        ("setup_s = 0.5", "setup_s = -1", "0 or more is allowed"),
        ("setup_s = 0.5", "setup_s = nan", "0 or more is allowed"),
        ("bytes_per_s = 100", "bytes_per_s = 0", "above 0"),
        ("sizes = [1, 10001]", "sizes = [10001, 1]", "sizes have to rise"),
        ("sizes = [1, 10001]", "sizes = [1]", "as many of each"),
        ("[operators.head]", "[operators.hat]", "head"),
    ],
)
def test_a_damaged_profile_is_refused_in_one_sentence(old: str, new: str, sentence: str) -> None:
    text = format_profile(made_up())
    assert old in text
    with pytest.raises(InvalidInput, match=sentence) as refused:
        parse_profile(text.replace(old, new), "profile mine.toml")
    assert str(refused.value).startswith("profile mine.toml") and "\n" not in str(refused.value)


def test_names_that_are_not_known() -> None:
    with pytest.raises(UnknownName, match="unknown device 'h10': did you mean"):
        stage_times("h10:Qwen2.5-VL-7B")
    with pytest.raises(UnknownName, match="unknown model 'Qwen9'"):
        stage_times("h100:Qwen9")
    with pytest.raises(InvalidInput, match="no encoder was measured on a100"):
        stage_times("a100:Qwen2.5-VL-7B")
    with pytest.raises(InvalidInput, match="DEVICE:MODEL as in h100"):
        stage_times("h100")
    with pytest.raises(NotFound, match="there is no such file"):
        stage_times("nowhere.toml")
    with pytest.raises(InvalidInput, match=r"gemm_perf\.parquet: there is no such table"):
        stage_times("tables:/nowhere:h100:Qwen2.5-VL-7B")


# --- shapes


def test_shapes_of_configurations() -> None:
    # What Qwen2.5-VL-7B's config.json says, cut down to what is read.
    vision = {
        "depth": 32, "hidden_size": 1280, "num_heads": 16, "intermediate_size": 3420, "in_chans": 3, "out_hidden_size": 3584,
        "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
    }  # fmt: skip
    config = {
        "num_hidden_layers": 28, "hidden_size": 3584, "num_attention_heads": 28, "num_key_value_heads": 4,
        "intermediate_size": 18944, "vocab_size": 152064, "tie_word_embeddings": False, "vision_config": vision,
    }  # fmt: skip
    assert shape_of("Qwen2.5-VL-7B", config) == SHAPES["Qwen2.5-VL-7B"]
    assert shape_named("Qwen/Qwen2.5-VL-7B-Instruct") is SHAPES["Qwen2.5-VL-7B"]
    assert patches_per_token(config) == 4 and patches_per_token({"vision_config": {}, "scale_factor": 3}) == 9
    assert patches_per_token({"vision_config": {"patch_size": 14}}) == 1  # LLaVA merges none
    # Parameters that the publishers name: 8.29 and 8.03 billion.
    assert SHAPES["Qwen2.5-VL-7B"].weights_bytes / 2 == pytest.approx(8.29e9, rel=0.002)
    assert SHAPES["Llama-3.1-8B"].weights_bytes / 2 == pytest.approx(8.03e9, rel=0.001)
    assert SHAPES["LLaVA-1.5-7B"].weights_bytes / 2 == pytest.approx(7.06e9, rel=0.003)
    assert SHAPES["SmolLM2-135M"].weights_bytes / 2 == pytest.approx(134.5e6, rel=0.001)


def test_a_folder_gives_its_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 64}')
    with pytest.raises(InvalidInput, match="describes no model of a known shape"):
        shape_named(str(tmp_path))


# --- against the tables themselves

TABLES = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "devices" / "aiconfigurator"


@pytest.fixture(scope="module")
def tables() -> Path:
    pytest.importorskip("pyarrow", reason="the extra 'tables' is not installed")
    if not TABLES.is_dir():
        pytest.skip("aiconfigurator's operator tables are not there")
    return TABLES


@pytest.mark.parametrize("name", ["h100:Qwen2.5-VL-7B", "l40s:LLaVA-1.5-7B", "a100:Llama-3.1-8B"])
def test_packaged_profiles_say_what_the_tables_say(name: str, tables: Path) -> None:
    packaged, exact = stage_times(name), stage_times(name, tables)
    for batch in (
        BatchShape(chunks=((700, 0),)),
        BatchShape(chunks=((512, 3000), (100, 0)), decodes=40, decode_context=60_000),
        BatchShape(decodes=100, decode_context=70_000),
    ):
        assert packaged.iteration_s(batch) == pytest.approx(exact.iteration_s(batch), rel=0.015)
    if exact.profile.encodes:
        assert packaged.encode_s((3000, 500)) == pytest.approx(exact.encode_s((3000, 500)), rel=0.015)
    assert packaged.profile.memory == exact.profile.memory
    assert packaged.patches_per_token == exact.patches_per_token


def test_devices_are_as_the_tables_describe_them(tables: Path) -> None:
    for device in DEVICES.values():
        said = dict(
            line.split("#")[0].strip().split(": ", 1)
            for line in (tables / f"{device.folder}.yaml").read_text().splitlines()
            if ": " in line.split("#")[0].strip()
        )
        assert device.memory_bytes == int(said["mem_capacity"])
        assert device.bytes_per_s == float(said["mem_bw"])
        assert device.link_bytes_per_s == float(said["intra_node_bw"])
        assert device.memory_share == float(said["mem_bw_empirical_scaling_factor"])
        assert device.kernel_s == float(said["mem_empirical_constant_latency"])
        assert device.reserved_bytes == int(said["other_mem"])
        assert device.encodes == (tables / device.folder / "encoder_attention_perf.parquet").is_file()


def test_all_profiles_are_in_the_package() -> None:
    for name in PROFILES:
        device, _, model = name.partition(":")
        found = profile_named(name)
        assert (found.device, found.model) == (device, model)
        assert "aiconfigurator" in found.source and "Apache-2.0" in found.licence
        assert found.fit.p95 < 0.02 and found.fit.encode_p95 < 0.02
    folder = Path(__file__).resolve().parents[2] / "src" / "tierline" / "perf" / "profiles"
    wanted = {packaged_name(*name.split(":")) for name in PROFILES}
    assert {path.name for path in folder.glob("*.toml")} == wanted
