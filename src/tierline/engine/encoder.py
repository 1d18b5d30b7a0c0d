"""The encoder lane: images are preprocessed and encoded in a thread of their own, beside the iterations.

PyTorch and PIL let go of the interpreter while they compute, and a GPU has a stream for images alone, so an iteration does
not queue behind an image, unless the instance wants that (`core/encoder_kind.py`); it shares the device with it.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from tierline.core.request import Picture
from tierline.engine.families import image_layout_of
from tierline.engine.families.text import TextFamily
from tierline.engine.pace import PacedDevice


@dataclass(frozen=True, slots=True)
class Encoded:
    """Embeddings [tokens, hidden] of an image, or the sentence that says why there are none. `seconds`: that it took."""

    content_hash: str
    embeddings: torch.Tensor | None
    error: str = ""
    seconds: float = 0.0


class EncoderLane:
    """`wake` is called from the lane's thread whenever `take` has something new. `pace`: of the device that is played.
    `beside`: images may be computed while iterations are; else what was begun before them on the device ends first."""

    def __init__(
        self,
        family: TextFamily,
        wake: Callable[[], None],
        pace: PacedDevice | None = None,
        *,
        beside: bool = True,
    ) -> None:
        self._family = family
        self._pace = pace
        self._layout = image_layout_of(family.config, family.folder)
        self._wake = wake
        self._done: queue.SimpleQueue[Encoded] = queue.SimpleQueue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="encoder")
        self._stream: torch.cuda.Stream | None = None
        device = family.embedding.weight.device
        if device.type == "cuda":
            iterations = torch.cuda.default_stream(device)
            self._stream = torch.cuda.Stream(device) if beside else iterations  # type: ignore[no-untyped-call]
            self._stream.wait_stream(iterations)  # the weights are loaded there

    def submit(self, picture: Picture) -> None:
        self._thread.submit(self._encode, picture)

    def fail(self, content_hash: str, error: str) -> None:
        """Say at once that an image cannot be encoded."""
        self._done.put(Encoded(content_hash, None, error))
        self._wake()

    def take(self) -> list[Encoded]:
        """What has been encoded since the last call."""
        found: list[Encoded] = []
        while not self._done.empty():
            found.append(self._done.get())
        return found

    def close(self) -> None:
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _encode(self, picture: Picture) -> None:
        try:
            if self._pace is not None:
                self._pace.begin_image(self._places(picture) or 0)
            if self._stream is not None:
                self._stream.synchronize()  # an iteration of which nothing was drawn may still be computed there
            begun = time.perf_counter()
            embeddings = self._embeddings(picture)
            self._check(picture, len(embeddings))
            result = Encoded(picture.content_hash, embeddings, seconds=time.perf_counter() - begun)
        except Exception as error:  # whatever a model's processor raises belongs to this image, not to its neighbours
            result = Encoded(picture.content_hash, None, f"{type(error).__name__}: {error}")
        if self._pace is not None:
            self._pace.end_image()
        self._done.put(result)
        self._wake()

    def _embeddings(self, picture: Picture) -> torch.Tensor:
        stream = self._stream
        with torch.inference_mode(), nullcontext() if stream is None else torch.cuda.stream(stream):
            found = self._family.encode([picture])[0].contiguous()
        if stream is not None:
            stream.synchronize()
            # Iterations read it on their stream: its memory goes to no other image before they have.
            found.record_stream(torch.cuda.default_stream(found.device))
        return found

    def _check(self, picture: Picture, made: int) -> None:
        """A prompt has a place for each embedding. Raises `ValueError` where the model makes another number of them."""
        wanted = self._places(picture)
        if wanted is not None and made != wanted:
            raise ValueError(f"the model made {made} embeddings, and the prompt has {wanted} places for them")

    def _places(self, picture: Picture) -> int | None:
        """How many embeddings a prompt has places for; None where that is not known."""
        if self._layout is None:
            return None
        layout = self._layout(picture.width, picture.height)
        return layout.tokens.count(layout.image_token)
