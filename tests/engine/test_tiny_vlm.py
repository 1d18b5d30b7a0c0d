"""tiny-vlm: Transformers loads it as it is, it is small, and it answers what it was never trained on.

Right answers are counted as the benchmark counts them (`benchmarks/tiny_vlm_accuracy.py`), on held-out seeds that lie apart
from the benchmark's first thousands.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tierline.workloads.scene_questions import SCENE_KINDS

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "src" / "tierline" / "engine" / "tiny_vlm"
LEAST = {
    "grid": 0.95,
    "free": 0.95,
    "text": 0.95,
}
FIRST_SEED = 500_000  # of the held-out ones: not those that the benchmark shows

pytest.importorskip("torch", reason="torch is not installed: pip install 'tierline[serve]'")
pytest.importorskip("transformers", reason="transformers is not installed: pip install 'tierline[serve]'")
pytest.importorskip("PIL", reason="pillow is not installed: pip install 'tierline[serve]'")

import torch  # noqa: E402
from PIL import Image, ImageDraw  # noqa: E402


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


accuracy = _load("tiny_vlm_accuracy", ROOT / "benchmarks" / "tiny_vlm_accuracy.py")


@pytest.fixture(scope="module")
def examinee() -> Any:
    # Stored in bf16, computed in fp32: old processors are slow in bf16.
    return accuracy.Examinee(FOLDER, "float32")


def test_small_and_self_contained(examinee: Any) -> None:
    parameters = sum(parameter.numel() for parameter in examinee.model.parameters())
    assert 3_000_000 <= parameters <= 6_000_000
    files = list(FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 12 * 2**20
    assert {file.suffix for file in files} <= {".json", ".jinja", ".safetensors", ".md"}
    for file in files:
        if file.suffix != ".safetensors":
            assert "/home/" not in (text := file.read_text(encoding="utf-8")) and "/work/" not in text
    config = json.loads((FOLDER / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"] and config["dtype"] == "bfloat16"
    assert config["text_config"]["max_position_embeddings"] == 2048


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain words",
        "naïve café — 日本語 🙂🏳️‍🌈",
        "\ttabs\n\n  and   spaces ",
        "a\x00b <tag> 1234567890",
        "א\u200dب",
    ],
)
def test_any_text_goes_through_the_tokenizer_and_comes_back(examinee: Any, text: str) -> None:
    tokenizer = examinee.processor.tokenizer
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


def test_chat_template_takes_what_openai_clients_send(examinee: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Look: "}, {"type": "image"}, {"type": "image"}]},
        {"role": "assistant", "content": "two circles"},
        {"role": "user", "content": "And now?"},
    ]
    expected = (
        "<|system|>Be brief.<|end|><|user|>Look: <image><image><|end|>"
        "<|assistant|>two circles<|end|><|user|>And now?<|end|>"
    )
    processor = examinee.processor
    assert processor.apply_chat_template(messages) == expected
    assert processor.apply_chat_template(messages, add_generation_prompt=True) == expected + "<|assistant|>"
    assert processor.tokenizer.apply_chat_template(messages, tokenize=False) == expected
    tokenizer, generation = processor.tokenizer, examinee.model.generation_config
    assert tokenizer.eos_token == "<|end|>" and generation.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.encode("<image>", add_special_tokens=False) == [examinee.model.config.image_token_index]


def test_a_long_prompt_with_four_pictures_runs(examinee: Any) -> None:
    pictures = [Image.new("RGB", size, "white") for size in ((112, 112), (640, 480), (30, 200), (1000, 1000))]
    inputs = examinee.processor(text="<image>" * 4 + "how many shapes? " * 300, images=pictures, return_tensors="pt")
    assert inputs["input_ids"].shape[1] > 4 * 64 + 600 and inputs["pixel_values"].shape == (4, 3, 112, 112)
    with torch.inference_mode():
        tokens = examinee.model.generate(**inputs, max_new_tokens=4, min_new_tokens=4, do_sample=False)
    assert tokens.shape[1] == inputs["input_ids"].shape[1] + 4


@pytest.mark.parametrize("which", ["grid", "free"])
@pytest.mark.parametrize("kind", SCENE_KINDS)
def test_held_out_scenes(examinee: Any, which: str, kind: str) -> None:
    _assert_right(examinee, which, kind, 60)


def test_questions_without_a_picture(examinee: Any) -> None:
    _assert_right(examinee, "text", "text", 60)


def _assert_right(examinee: Any, which: str, kind: str, count: int) -> None:
    asked = accuracy.exam(which, kind, count, FIRST_SEED)
    answers = examinee.answers([(a.question.text, a.picture) for a in asked])
    wrong = [
        (a.seed, a.question, answer) for a, answer in zip(asked, answers, strict=True) if answer != a.question.answer
    ]
    assert len(asked) == count
    assert 1 - len(wrong) / count >= LEAST[which], wrong[:10]


def _picture(background: str, *drawn: tuple[str, tuple[int, ...], str]) -> Image.Image:
    """As a stranger draws: whole pixels, named colours."""
    image = Image.new("RGB", (112, 112), background)
    pen = ImageDraw.Draw(image)
    for kind, at, colour in drawn:
        getattr(pen, kind)(at, fill=colour)
    return image


RED_CIRCLE = _picture("white", ("ellipse", (30, 30, 80, 80), "red"))
BLUE_SQUARE = _picture("white", ("rectangle", (10, 12, 50, 52), "blue"))
YELLOW_TRIANGLE = _picture("black", ("polygon", (56, 20, 30, 70, 82, 70), "yellow"))
GREEN_CIRCLE = _picture("white", ("ellipse", (70, 70, 100, 100), "green"))
TWO = _picture("white", ("ellipse", (5, 5, 45, 45), "orange"), ("rectangle", (60, 60, 100, 100), "purple"))
THREE = _picture(
    "gray",
    ("rectangle", (8, 70, 38, 100), "red"),
    ("polygon", (85, 8, 68, 40, 102, 40), "lime"),
    ("ellipse", (8, 8, 36, 36), "blue"),
)
STRANGERS = [
    (RED_CIRCLE, "What colour is the circle?", "red"),
    (RED_CIRCLE, "What shape is this?", "circle"),
    (RED_CIRCLE, "How many shapes are there?", "1"),
    (RED_CIRCLE, "Where is the circle?", "middle"),
    (BLUE_SQUARE, "what color is the square", "blue"),
    (BLUE_SQUARE, "What shape is this?", "square"),
    (YELLOW_TRIANGLE, "What shape is this?", "triangle"),
    (YELLOW_TRIANGLE, "What color is it?", "yellow"),
    (GREEN_CIRCLE, "Where is the circle?", "bottom right"),
    (GREEN_CIRCLE, "Is there a square?", "no"),
    (TWO, "How many shapes are there?", "2"),
    (TWO, "What colour is the square?", "purple"),
    (TWO, "Is there an orange circle?", "yes"),
    (THREE, "How many shapes are there?", "3"),
    (THREE, "What colour is the triangle?", "green"),
    (THREE, "How many circles are there?", "1"),
]


def test_a_strangers_drawings(examinee: Any) -> None:
    answers = examinee.answers([(text, picture) for picture, text, _ in STRANGERS])
    found = [(text, answer) for (_, text, _), answer in zip(STRANGERS, answers, strict=True)]
    assert found == [(text, answer) for _, text, answer in STRANGERS]


def test_a_chat_with_earlier_turns(examinee: Any) -> None:
    picture = _picture("white", ("ellipse", (20, 20, 60, 60), "blue"))
    conversations = [
        ([{"type": "image"}, {"type": "text", "text": "What colour is the circle?"}], [], "blue"),
        (
            [{"type": "image"}, {"type": "text", "text": "How many shapes are there?"}],
            ["1", "What shape is this?"],
            "circle",
        ),
    ]
    for content, more, expected in conversations:
        messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
        messages += [{"role": role, "content": text} for role, text in zip(("assistant", "user"), more, strict=False)]
        prompt = examinee.processor.apply_chat_template(messages, add_generation_prompt=True)
        inputs = examinee.processor(text=prompt, images=picture, return_tensors="pt")
        with torch.inference_mode():
            tokens = examinee.model.generate(**inputs, max_new_tokens=20, do_sample=False)
        assert (
            examinee.processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True) == expected
        )
