"""The model families. A family says which modules of a Transformers model do what; it holds no model code.

This mapping from a checkpoint's `model_type` is their one registration point. Whatever is not in it and is a plain causal
language model with Transformers' attention interface is served as text.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from tierline.engine.families.text import TextFamily

FAMILIES: Mapping[str, str] = {
    "llama": "tierline.engine.families.text:TextFamily",
    "llava": "tierline.engine.families.llava:LlavaFamily",
    "qwen2_5_vl": "tierline.engine.families.qwen2_5_vl:Qwen25VlFamily",
    "smolvlm": "tierline.engine.families.smolvlm:SmolVlmFamily",
}


def family_of(model_type: str) -> type[TextFamily]:
    """The family of a checkpoint."""
    module, _, attribute = FAMILIES.get(model_type, FAMILIES["llama"]).partition(":")
    return cast("type[TextFamily]", getattr(importlib.import_module(module), attribute))
