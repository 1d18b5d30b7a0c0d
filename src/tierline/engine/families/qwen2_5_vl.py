"""Qwen2.5-VL: images of any size, and rotary positions with three axes (time, height, width)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch

from tierline.core.errors import InvalidInput
from tierline.core.request import Picture, Request
from tierline.engine.families.pictures import image_processor, to_pil
from tierline.engine.families.text import ImageLayout, Positions, TextFamily


def image_layout(config: Any, folder: str) -> Callable[[int, int], ImageLayout]:
    """The placeholder's replacement for an image of (width, height): a token for each merged patch of its resized self.
    `grid` is (time, height, width) in patches."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    processor = image_processor(folder)
    patch, merge, size = processor.patch_size, processor.merge_size, processor.size

    def layout(width: int, height: int) -> ImageLayout:
        try:
            high, wide = smart_resize(
                height, width, patch * merge, min_pixels=size["shortest_edge"], max_pixels=size["longest_edge"]
            )
        except ValueError as error:
            raise InvalidInput(f"an image of {width} x {height} pixels: {error}.") from error
        grid = (1, high // patch, wide // patch)
        return ImageLayout((config.image_token_id,) * (grid[1] * grid[2] // merge**2), config.image_token_id, grid)

    return layout


class Qwen25VlFamily(TextFamily):
    """See the module."""

    auto_class: ClassVar[str] = "AutoModelForImageTextToText"
    takes_images: ClassVar[bool] = True

    @property
    def backbone(self) -> Any:
        return self.model.model.language_model

    @cached_property
    def _processor(self) -> Any:
        return image_processor(self.folder)

    def positions(self, request: Request) -> Positions:
        length = len(request.prompt)
        if not request.images:
            return Positions(torch.arange(length).expand(3, -1), 0)
        kinds = torch.zeros((1, length), dtype=torch.int)
        for image in request.images:
            kinds[0, image.start : image.end] = 1
        grids = torch.tensor([image.grid for image in request.images])
        positions, shift = self.model.model.get_rope_index(torch.tensor([request.prompt]), kinds, image_grid_thw=grids)
        return Positions(positions[:, 0], int(shift))

    def encode(self, pictures: Sequence[Picture]) -> list[torch.Tensor]:
        tower = self.model.model.visual
        inputs = self._processor([to_pil(picture) for picture in pictures], return_tensors="pt")
        pixels = inputs["pixel_values"].to(tower.device, tower.dtype)
        grids = inputs["image_grid_thw"].to(tower.device)
        return list(self.model.get_image_features(pixel_values=pixels, image_grid_thw=grids).pooler_output)
