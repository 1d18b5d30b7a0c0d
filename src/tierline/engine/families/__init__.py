"""The model families. A family says which modules of a Transformers model do what; it holds no model code.

This mapping from a checkpoint's `model_type` is their one registration point. Whatever is not in it and is a plain causal
language model with Transformers' attention interface is served as text. A family that takes images has in its module
`image_layout(config, folder)`, which needs no weights.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, cast

from tierline.engine.families.text import ImageLayout, TextFamily

FAMILIES: Mapping[str, str] = {
    "llama": "tierline.engine.families.text:TextFamily",
    "llava": "tierline.engine.families.llava:LlavaFamily",
    "qwen2_5_vl": "tierline.engine.families.qwen2_5_vl:Qwen25VlFamily",
    "smolvlm": "tierline.engine.families.smolvlm:SmolVlmFamily",
    "idefics3": "tierline.engine.families.smolvlm:SmolVlmFamily",
}


def family_of(model_type: str) -> type[TextFamily]:
    """The family of a checkpoint."""
    module, _, attribute = FAMILIES.get(model_type, FAMILIES["llama"]).partition(":")
    return cast("type[TextFamily]", getattr(importlib.import_module(module), attribute))


def image_layout_of(config: Any, folder: str) -> Callable[[int, int], ImageLayout] | None:
    """What replaces the placeholder of an image of (width, height); None where the model takes no images. The placeholder
    that chat templates write is `config.image_token_id` in every family."""
    family = family_of(config.model_type)
    if not family.takes_images:
        return None
    layout = importlib.import_module(family.__module__).image_layout
    return cast("Callable[[int, int], ImageLayout]", layout(config, folder))
