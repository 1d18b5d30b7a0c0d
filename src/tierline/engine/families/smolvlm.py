"""SmolVLM and Idefics3: an image is cut into tiles with tokens of their own; between these stand tokens for rows and columns,
and the whole image comes last."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch

from tierline.core.request import Picture
from tierline.engine.families.pictures import image_processor, to_pil
from tierline.engine.families.text import ImageLayout, TextFamily


def image_layout(config: Any, folder: str) -> Callable[[int, int], ImageLayout]:
    """The placeholder's replacement for an image of (width, height). `grid` is (rows, columns) of tiles, (0, 0) for an image
    that is not cut."""
    import transformers
    from transformers.models.smolvlm import processing_smolvlm

    auto: Any = transformers.AutoTokenizer
    tokenizer = auto.from_pretrained(folder)
    prompt_of: Any = processing_smolvlm.get_image_prompt_string
    vision = config.vision_config
    length = (vision.image_size // vision.patch_size) ** 2 // config.scale_factor**2
    grid_of = _tiling(image_processor(folder))

    def layout(width: int, height: int) -> ImageLayout:
        grid = grid_of(width, height)
        text = prompt_of(
            *grid,
            length,
            fake_token_around_image=getattr(tokenizer, "fake_image_token", "<fake_token_around_image>"),
            image_token=getattr(tokenizer, "image_token", "<image>"),
            global_image_token=getattr(tokenizer, "global_image_token", "<global-img>"),
        )
        tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
        return ImageLayout(tuple(tokens), config.image_token_id, grid)

    return layout


def _tiling(processor: Any) -> Callable[[int, int], tuple[int, int]]:
    """(width, height) -> (rows, columns), by the processor's own arithmetic on a picture without pixels. (What it offers for
    this, `get_number_of_image_patches`, rounds otherwise than its preparation does.)"""
    from transformers import image_processing_backends
    from transformers.image_utils import SizeDict

    backend: Any = image_processing_backends.PilBackend

    def blank(height: int, width: int) -> Any:
        return np.broadcast_to(np.uint8(0), (3, height, width))

    class NoPixels(backend):  # type: ignore[misc]
        def resize(self, image: Any, size: Any, **kwargs: Any) -> Any:
            return blank(size.height, size.width)

    sizer = copy.copy(processor)
    sizer.__class__ = type("Sizer", (type(processor), NoPixels), {})
    tile = {"longest_edge": processor.max_image_size["longest_edge"]}

    def tiling(width: int, height: int) -> tuple[int, int]:
        if not processor.do_image_splitting:
            return 0, 0
        picture = blank(height, width)
        if processor.do_resize:
            picture = sizer.resize(picture, SizeDict(**dict(processor.size)))
        picture = sizer.resize_for_vision_encoder(picture, tile["longest_edge"])
        _, rows, columns = sizer.split_images(picture, tile)
        return rows, columns

    return tiling


class SmolVlmFamily(TextFamily):
    """See the module."""

    auto_class: ClassVar[str] = "AutoModelForImageTextToText"
    takes_images: ClassVar[bool] = True

    @property
    def backbone(self) -> Any:
        return self.model.model.text_model

    @cached_property
    def _processor(self) -> Any:
        return image_processor(self.folder)

    def encode(self, pictures: Sequence[Picture]) -> list[torch.Tensor]:
        tower = self.model.model.vision_model
        found: list[torch.Tensor] = []
        for picture in pictures:
            inputs = self._processor([[to_pil(picture)]], return_tensors="pt")
            mask = inputs.get("pixel_attention_mask")
            features = self.model.get_image_features(
                pixel_values=inputs["pixel_values"].to(tower.device, tower.dtype),
                pixel_attention_mask=None if mask is None else mask.to(tower.device),
            ).pooler_output
            found += features
        return found
