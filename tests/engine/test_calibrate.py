"""Calibration on a small checkpoint: what is told of memory is true, all kinds of iterations are run, the file is of use."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("zmq")

from tierline.cli.main import main
from tierline.core.errors import InvalidInput
from tierline.core.stage_times import BatchShape
from tierline.engine.calibrate import CalibrationOptions, calibrate
from tierline.engine.settings import InstanceSettings
from tierline.perf.device_times import stage_times
from tierline.perf.serving_profile import save_profile
from tierline.testing.checkpoints import build


@pytest.mark.parametrize("kind", ["llama", "qwen2_5_vl"])
def test_a_profile_of_what_was_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from tierline.engine import calibrate as module

    seen: list[BatchShape] = []
    fit = module.fit_linear

    def watched(iterations: list[module.Measured], images: list[module.MeasuredImage]) -> object:
        seen.extend(each.batch for each in iterations)
        assert all(each.seconds > 0 for each in (*iterations, *images))
        return fit(iterations, images)

    monkeypatch.setattr(module, "fit_linear", watched)
    monkeypatch.setattr(module, "MOST_ITERATIONS", 150)
    folder = build(kind, tmp_path)
    settings = InstanceSettings("i0", folder, "", "", "", "", dtype="fp32", kv_bytes=4_000_000, token_budget=128)
    shares: list[float] = []
    profile = calibrate(settings, kind, CalibrationOptions(600.0), lambda share, doing: shares.append(share))
    assert shares == sorted(shares) and shares[-1] == 1.0
    # Every kind of iteration was run: decodes alone, prompts alone, both, and chunks behind what is cached.
    assert any(batch.decodes and not batch.chunks for batch in seen)
    assert any(batch.chunks and not batch.decodes for batch in seen)
    assert any(batch.chunks and batch.decodes for batch in seen)
    assert any(cached for batch in seen for _, cached in batch.chunks)
    assert max(sum(new for new, _ in batch.chunks) + batch.decodes for batch in seen) <= 128
    assert profile.fit.points > 5 and len(seen) + profile.fit.points >= 150
    config = json.loads((Path(folder) / "config.json").read_text())
    text = config.get("text_config", config)
    head = text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]
    heads = text.get("num_key_value_heads") or text["num_attention_heads"]
    assert profile.memory.kv_token_bytes == 2 * text["num_hidden_layers"] * heads * head * 4
    assert profile.memory.kv_tokens * profile.memory.kv_token_bytes <= 4_000_000
    assert profile.memory.embedding_token_bytes == 4 * text["hidden_size"]
    assert profile.transfer.bytes_per_s > 1e6 and profile.transfer.setup_s > 0
    assert (profile.model, profile.device) == (kind, "cpu")
    shares_of_time = profile.advice.encode_share + profile.advice.prefill_share + profile.advice.decode_share
    assert shares_of_time == pytest.approx(1) and profile.advice.tipping_tokens >= 1
    save_profile(profile, tmp_path / "made.toml")
    times = stage_times(str(tmp_path / "made.toml"), model=kind, device="cpu")
    assert times.iteration_s(BatchShape(decodes=4, decode_context=100)) > 0
    if kind == "llama":
        assert not profile.encodes and profile.advice.encode_share == 0 and profile.overlap is None
        with pytest.raises(InvalidInput, match="knows of no encoder"):
            times.encode_s((4,))
    else:
        assert times.patches_per_token == profile.patches_per_token == 4  # 2 x 2 of them
        assert times.encode_s((4096,)) > times.encode_s((256,)) > 0 and times.prepare_s(256) > 0
        assert profile.overlap is not None and profile.overlap.ridge_tokens == profile.advice.tipping_tokens
        assert [times.slowdown(tokens) for tokens in (1, 5000)] == [
            pytest.approx(profile.overlap.slowdown(tokens)) for tokens in (1, 5000)
        ]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tierline.engine.model import TINY_VLM

    if not (Path(TINY_VLM) / "config.json").is_file():
        pytest.skip("tiny-vlm is not built: its folder holds no config.json")
    path = tmp_path / "tiny.toml"
    assert (
        main(
            ["calibrate", "serving", "tiny-vlm", "-o", str(path), "--seconds", "1", "--threads", "1", "--device", "cpu"]
        )
        == 0
    )
    told = capsys.readouterr().out
    assert told.startswith("tiny-vlm on cpu\n") and f"Written to {path}." in told
    for what in (
        "weights",
        "KV",
        "prefill",
        "decode",
        "encode",
        "transfer",
        "tipping point",
        "initial split",
        "off by",
    ):
        assert f"\n{what}" in told
    found = stage_times(str(path), model="tiny-vlm").profile
    assert found.encodes and found.linear is not None
    assert main(["calibrate", "serving", "tiny-vlm", "--seconds", "0"]) == 2
    assert "--seconds 0: 1 to 3600 is allowed" in capsys.readouterr().err
    assert main(["calibrate", "serving", "./nowhere"]) == 2
