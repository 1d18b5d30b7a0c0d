"""Opening checkpoints: what is said when that fails, what is read of them, and which parts of a model use our attention."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tierline.core.errors import InvalidInput  # noqa: E402
from tierline.engine import attention  # noqa: E402
from tierline.engine.families import family_of, image_layout_of  # noqa: E402
from tierline.engine.families.text import TextFamily  # noqa: E402
from tierline.engine.model import KvShape, context_tokens, end_tokens, kv_shape, load, locate, read_config  # noqa: E402
from tierline.testing.checkpoints import CHECKPOINTS, CONTEXT_TOKENS, build  # noqa: E402

if TYPE_CHECKING:
    from tests.engine.conftest import Case

CPU = torch.device("cpu")


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    for name in (missing, "./missing", "~/missing", "a/b/c"):
        with pytest.raises(InvalidInput, match=f"model '{name}': there is no such folder"):
            read_config(name)


def test_a_folder_without_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"holds no config\.json"):
        locate(str(tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"model_type": "no-such-model"}', '"text"'])
def test_a_configuration_that_says_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InvalidInput, match="cannot be opened"):
        read_config(str(tmp_path))


def test_a_name_that_nobody_has(offline: None) -> None:
    with pytest.raises(InvalidInput, match=r"model 'no-such-owner/no-such-model' cannot be opened \("):
        read_config("no-such-owner/no-such-model")


def test_a_checkpoint_without_weights(case: Callable[[str], Case], tmp_path: Path) -> None:
    shutil.copy(Path(case("llama").folder, "config.json"), tmp_path)
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load(str(tmp_path), torch.float32, CPU)


def test_weights_that_are_cut_short(case: Callable[[str], Case], tmp_path: Path) -> None:
    shutil.copytree(case("llama").folder, tmp_path, dirs_exist_ok=True)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(InvalidInput, match="cannot be loaded"):
        load(str(tmp_path), torch.float32, CPU)


def test_shapes_and_context(case: Callable[[str], Case]) -> None:
    text, wide, picture = (read_config(case(kind).folder) for kind in ("llama", "qwen3", "llava-clip"))
    assert kv_shape(text) == kv_shape(picture) == KvShape(layers=2, kv_heads=2, head_dim=16)
    assert kv_shape(wide) == KvShape(layers=2, kv_heads=2, head_dim=32)
    assert {context_tokens(config) for config in (text, wide, picture)} == {CONTEXT_TOKENS}


def test_a_sliding_window_bounds_the_context() -> None:
    assert context_tokens(transformers.MistralConfig(max_position_embeddings=900, sliding_window=64)) == 64
    assert context_tokens(transformers.MistralConfig(max_position_embeddings=900, sliding_window=None)) == 900
    assert context_tokens(transformers.Qwen2Config(max_position_embeddings=900, use_sliding_window=False)) == 900


def test_end_tokens_are_read(case: Callable[[str], Case], tmp_path: Path) -> None:
    folder = case("llava-clip").folder
    config = read_config(folder)
    end = transformers.AutoTokenizer.from_pretrained(folder).eos_token_id
    assert end_tokens(folder, config) == (end,)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    settings = tmp_path / "generation_config.json"
    for given, expected in (([3, 4], (3, 4)), (5, (5,)), (None, (end,))):
        settings.write_text(json.dumps({"eos_token_id": given}))
        assert end_tokens(str(tmp_path), config) == expected
    settings.unlink()
    assert end_tokens(str(tmp_path), config) == (end,)
    config.get_text_config().eos_token_id = None
    assert end_tokens(str(tmp_path), config) == ()


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_only_the_text_model_uses_our_attention(tmp_path: Path, kind: str) -> None:
    family = load(build(kind, tmp_path), torch.float32, CPU)
    backbone = set(family.backbone.modules())
    kinds = {module.config._attn_implementation for module in backbone if hasattr(module, "config")}
    assert kinds == {attention.NAME}
    others = [module for module in family.model.modules() if hasattr(module, "config") and module not in backbone]
    if family.takes_images:
        assert others
        assert {module.config._attn_implementation for module in others} == {"sdpa"}
    assert not any(weight.requires_grad for weight in family.model.parameters())


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_transformers_opens_what_is_built(tmp_path: Path, kind: str) -> None:
    folder = build(kind, tmp_path)
    config = read_config(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    messages = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == (
        "<|user|>hi<|end|><|assistant|>"
    )
    assert tokenizer.decode(tokenizer("né\n", add_special_tokens=False)["input_ids"]) == "né\n"
    placeholder = CHECKPOINTS[kind].placeholder
    layout = image_layout_of(config, folder)
    assert (layout is None) == (not placeholder)
    if layout is not None:
        tokens = tokenizer(placeholder, add_special_tokens=False)["input_ids"]
        assert tokens.count(config.image_token_id) == 1
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "x"}]}
        assert placeholder + "x" in tokenizer.apply_chat_template([message], tokenize=False)
        assert layout(40, 30).tokens.count(config.image_token_id) > 1


def test_what_nobody_knows_is_served_as_text() -> None:
    assert family_of("something-new") is TextFamily


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "gemma2", "attn_logit_softcapping": 50.0}, "caps scores"),
        ({"model_type": "gpt_oss"}, "sinks"),
    ],
)
def test_an_attention_that_is_not_the_plain_one_is_refused(
    tmp_path: Path, config: dict[str, object], said: str
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InvalidInput, match=said):
        load(str(tmp_path), torch.float32, torch.device("cpu"))
