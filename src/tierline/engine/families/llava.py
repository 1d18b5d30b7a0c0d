"""LLaVA 1.5 and its layout: a vision tower, a projector, a Llama-like model; every image has the same number of tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from tierline.core.request import Picture
from tierline.engine.families.pictures import image_processor, to_pil
from tierline.engine.families.text import ImageLayout, TextFamily


def image_layout(config: Any, folder: str) -> Callable[[int, int], ImageLayout]:
    """The placeholder's replacement for an image of (width, height)."""
    vision = config.vision_config
    tokens = (vision.image_size // vision.patch_size) ** 2
    has_class_token = vision.model_type == "clip_vision_model"
    if has_class_token and config.vision_feature_select_strategy == "full":
        tokens += 1
    elif not has_class_token and config.vision_feature_select_strategy == "default":
        tokens -= 1  # Transformers cuts off the first patch, whatever it is
    layout = ImageLayout((config.image_token_id,) * tokens, config.image_token_id)
    return lambda width, height: layout


class LlavaFamily(TextFamily):
    """See the module."""

    auto_class: ClassVar[str] = "AutoModelForImageTextToText"
    takes_images: ClassVar[bool] = True

    @property
    def backbone(self) -> Any:
        return self.model.model.language_model

    @cached_property
    def _processor(self) -> Any:
        return image_processor(self.folder)

    def encode(self, pictures: Sequence[Picture]) -> list[torch.Tensor]:
        tower = self.model.model.vision_tower
        pixels = self._processor([to_pil(picture) for picture in pictures], return_tensors="pt")["pixel_values"]
        features = self.model.get_image_features(
            pixel_values=pixels.to(tower.device, tower.dtype),
            vision_feature_layer=self.config.vision_feature_layer,
            vision_feature_select_strategy=self.config.vision_feature_select_strategy,
        ).pooler_output
        return [each.reshape(-1, each.shape[-1]) for each in features]
