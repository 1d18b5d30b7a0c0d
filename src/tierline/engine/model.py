"""Opens a checkpoint: a folder, a Hugging Face id, or `tiny-vlm`, the model in the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tierline.core.errors import InvalidInput
from tierline.engine import attention
from tierline.engine.families import family_of
from tierline.engine.families.text import TextFamily

TINY_VLM = Path(__file__).parent / "tiny_vlm"
SINKS = frozenset({"gpt_oss"})  # model types with learnt scores that no position stands for
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32, "fp16": torch.float16}


@dataclass(frozen=True, slots=True)
class KvShape:
    """What a position costs: keys and values of `kv_heads` x `head_dim` in each of `layers`."""

    layers: int
    kv_heads: int
    head_dim: int


def locate(name: str) -> str:
    """The folder of a model, or its name as it is where that is a Hugging Face id. Raises `InvalidInput`."""
    if name == "tiny-vlm":
        return str(TINY_VLM)
    if Path(name).is_dir():
        if not (Path(name) / "config.json").is_file():
            raise InvalidInput(f"model '{name}': the folder holds no config.json; a Transformers checkpoint is needed.")
        return name
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InvalidInput(f"model '{name}': there is no such folder.")
    return name


def read_config(name: str) -> Any:
    """The checkpoint's configuration. Raises `InvalidInput` where it cannot be had."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(locate(name))
    except (OSError, ValueError) as error:
        known = "'tiny-vlm', a folder, or a Hugging Face id that is cached or can be downloaded"
        raise InvalidInput(f"model '{name}' cannot be opened ({_first_line(error)}); {known} is needed.") from error


def kv_shape(config: Any) -> KvShape:
    text = config.get_text_config()
    heads = text.num_attention_heads
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // heads
    return KvShape(text.num_hidden_layers, getattr(text, "num_key_value_heads", None) or heads, head_dim)


def context_tokens(config: Any) -> int:
    """How long a sequence may get. Where a model attends over a sliding window, no longer than that: so far its attention is
    the plain one."""
    text = config.get_text_config()
    longest = int(getattr(text, "max_position_embeddings", 2048))
    return min(longest, getattr(text, "sliding_window", None) or longest)


def load(name: str, dtype: torch.dtype, device: torch.device) -> TextFamily:
    """The model, ready to run. Where the checkpoint is stored in `dtype`, its weights on a CPU stay a memory map of the
    file, which all instances of a host share."""
    import transformers
    from safetensors import SafetensorError
    from transformers import AttentionInterface

    config = read_config(name)
    _check_attention(name, config)
    family = family_of(config.model_type)
    AttentionInterface.register(attention.NAME, attention.paged_attention)
    auto = getattr(transformers, family.auto_class)
    try:
        model = auto.from_pretrained(locate(name), dtype=dtype)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise InvalidInput(f"model '{name}' cannot be loaded: {_first_line(error)}.") from error
    model.eval().requires_grad_(False).to(device)
    made = family(model, config, locate(name))
    made.backbone.config._attn_implementation = attention.NAME
    return made


def _check_attention(name: str, config: Any) -> None:
    """Raises `InvalidInput` for a model whose attention is another than the plain one, and would be computed wrongly."""
    text = config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        raise InvalidInput(
            f"model '{name}': its attention caps scores (attn_logit_softcapping), which is not supported yet."
        )
    if config.model_type in SINKS:
        raise InvalidInput(f"model '{name}': its attention has sinks, which are not supported yet.")


def end_tokens(name: str, config: Any) -> tuple[int, ...]:
    """Tokens that end an answer, as the checkpoint's generation settings say."""
    from transformers import GenerationConfig

    try:
        found = GenerationConfig.from_pretrained(locate(name)).eos_token_id
    except OSError:
        found = None
    if found is None:
        found = config.get_text_config().eos_token_id
    return tuple(found) if isinstance(found, list) else (found,) if found is not None else ()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
