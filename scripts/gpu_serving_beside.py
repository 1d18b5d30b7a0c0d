"""How much images, on a stream of their own, and iterations slow each other: a step of scripts/gpu_serving.py."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import gpu_serving_models as models
import torch
from gpu_serving_models import BLOCK_TOKENS, SHAPES, Desk
from gpu_serving_step import Settings, Tell, need_transformers
from torch import nn

DECODES = 32
SECONDS = 20.0


class Tower:
    """What an encoder lane wants of a family: here a vision tower whose weights are random, over patches that lie there."""

    def __init__(self, text: Any, layers: int, hidden: int, patches: int, dtype: torch.dtype) -> None:
        self.config, self.folder, self.embedding = text.config, "", text.embedding
        device = text.embedding.weight.device
        layer = nn.TransformerEncoderLayer(
            hidden, max(1, hidden // 64), 4 * hidden, batch_first=True, norm_first=True, device=device, dtype=dtype
        )
        self._layers = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False).eval()
        self._patches = torch.randn(1, patches, hidden, device=device, dtype=dtype)

    def encode(self, pictures: Sequence[Any]) -> list[torch.Tensor]:
        return [self._layers(self._patches)[0] for _ in pictures]


def beside(settings: Settings, tell: Tell) -> None:
    """Decodes, and prompts as long as an iteration may be beside them, by turns alone and beside images. Each iteration
    draws, so it has been computed when its step returns."""
    from tierline.core.request import Picture
    from tierline.engine.calibrate_overlap import Iteration, measure_overlap

    need_transformers()
    shape, device, (layers, hidden, patches) = settings.shapes[-1], settings.torch_device, settings.tower
    dtype = torch.bfloat16 if settings.on_gpu else torch.float32
    chunk, answer = settings.chunk_tokens, settings.output_tokens
    family: Any = models.random_family(shape, device, dtype)
    tower: Any = Tower(family, layers, hidden, patches, dtype)
    blocks = 2 * (DECODES * (2 * answer) + 2 * chunk) // BLOCK_TOKENS + DECODES
    engine = models.make_engine("beside", family, Desk(), blocks, token_budget=chunk + DECODES)
    asked = 0

    def queue(tokens: int, count: int, output: int) -> None:
        nonlocal asked
        asked += 1
        prompts = models.prompts_of(count, tokens, SHAPES[shape]["vocab_size"], seed=asked)
        models.queue(engine, prompts, output, f"q{asked}.")
        engine.instance.step()  # decided before all of them were there

    def step() -> float:
        begun = time.perf_counter()
        engine.instance.step()
        return time.perf_counter() - begun

    def decodes() -> float:
        if not engine.instance.has_step:
            queue(answer, DECODES, answer)
            engine.instance.step()
        return step()

    def prompted() -> float:
        decodes()
        if not engine.instance.has_step:  # those were the last
            decodes()
        queue(chunk, 1, 1)
        return step()

    ridge = chunk // 2
    try:
        found = measure_overlap(
            tower,
            Picture("made up", 1, 1, b"\0\0\0"),
            Iteration(DECODES, decodes),
            Iteration(chunk, prompted),
            ridge,
            time.monotonic() + SECONDS,
        )
    finally:
        engine.close()
    about = {"shape": shape, "decodes": DECODES, "chunk_tokens": chunk, "layers": layers, "patches": patches}
    tell({**about, "decodes_slowdown": found.slowdown(DECODES), "prompt_slowdown": found.slowdown(chunk)})
