"""From a decoded picture to what an image processor takes."""

from __future__ import annotations

from typing import Any

from PIL import Image

from tierline.core.request import Picture


def to_pil(picture: Picture) -> Image.Image:
    return Image.frombytes("RGB", (picture.width, picture.height), picture.rgb)


def image_processor(folder: str) -> Any:
    """The checkpoint's own image processor, on PIL: it needs no torchvision and gives the same pixels everywhere."""
    import transformers

    auto: Any = transformers.AutoImageProcessor
    return auto.from_pretrained(folder, backend="pil")
