"""Llama and its likes: text in, text out. The other families add images to this one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from tierline.core.request import Picture, Request


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """What stands for one image in a prompt: `tokens` replace the placeholder; of them those equal to `image_token` take
    the image's embeddings, in order. `grid`: what encoder and positions must know of the image's size."""

    tokens: tuple[int, ...]
    image_token: int
    grid: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Positions:
    """Rotary positions that are not simply 0, 1, 2, …: `prompt` [axes, tokens], and what an output token's index in the
    sequence has to be shifted by."""

    prompt: torch.Tensor
    shift: int


class TextFamily:
    """`model`: the Transformers model with its head; `config` its configuration; `folder` where its files lie."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    takes_images: ClassVar[bool] = False

    def __init__(self, model: Any, config: Any, folder: str) -> None:
        self.model = model
        self.config = config
        self.folder = folder

    @property
    def backbone(self) -> Any:
        """The module from embeddings to last hidden states."""
        return self.model.get_decoder()

    @property
    def head(self) -> Any:
        """The module from hidden states to logits."""
        return self.model.get_output_embeddings()

    @property
    def embedding(self) -> Any:
        """The module from token ids to embeddings."""
        return self.model.get_input_embeddings()

    def positions(self, request: Request) -> Positions | None:
        """None = 0, 1, 2, …"""
        return None

    def encode(self, pictures: Sequence[Picture]) -> list[torch.Tensor]:
        """Embeddings of each picture, [its tokens, hidden]."""
        raise AssertionError("a text model takes no images")
