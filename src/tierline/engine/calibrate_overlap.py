"""How much iterations and the encoder slow each other on this machine: each alone, then both at once, by turns."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from tierline.core.errors import InvalidInput
from tierline.core.request import Picture
from tierline.engine.encoder import EncoderLane
from tierline.engine.families.text import TextFamily
from tierline.perf.device_sharing import Overlap

ITERATIONS, IMAGES = 10, 2  # of a turn
MOST_TURNS = 20
MANY = 2  # times the tipping point, where a device has arithmetic to spare for nothing else

Iterate = Callable[[int], float]
"""Runs an iteration of so many new tokens (1 = a decode) and returns its seconds."""


def measure_overlap(
    family: TextFamily, picture: Picture, iterate: Iterate, tipping_tokens: int, most_tokens: int, until: float
) -> Overlap:
    """`perf.device_sharing.Overlap` of what `iterate` runs and this picture; a turn at least, and no more after `until`
    (monotonic seconds). `most_tokens`: of an iteration. Raises `InvalidInput` where the picture cannot be encoded."""
    images = _Images(family, picture)
    many = max(1, min(MANY * tipping_tokens, most_tokens))
    alone: list[float] = []
    turns: dict[int, list[tuple[float, float]]] = {tokens: [] for tokens in (1, many)}
    try:
        images.one()  # warms up
        for _ in range(MOST_TURNS):
            alone += [images.one() for _ in range(IMAGES)]
            for tokens, found in turns.items():
                by_itself_s = median([iterate(tokens) for _ in range(ITERATIONS)])
                beside, slowed = images.beside(partial(iterate, tokens), IMAGES)
                found.append((median(beside) / by_itself_s, median(slowed)))
            if time.monotonic() > until:
                break
    finally:
        images.close()
    image_s = median(alone)

    def slowdown(tokens: int) -> float:
        """Of both: the model has them slow each other alike."""
        iterations, slowed = zip(*turns[tokens], strict=True)
        return max(1.0, math.sqrt(median(iterations) * median(slowed) / image_s))

    return Overlap(
        float(max(1, tipping_tokens)), encoder_arithmetic=slowdown(many) - 1, encoder_bandwidth=slowdown(1) - 1
    )


class _Images:
    """The same picture again and again, through a lane."""

    def __init__(self, family: TextFamily, picture: Picture) -> None:
        self._lane = EncoderLane(family, self._done, device=family.embedding.weight.device)
        self._picture = picture
        self._goes_on = False  # each is followed by another at once
        self._idle = threading.Event()

    def close(self) -> None:
        self._goes_on = False
        self._lane.close()

    def one(self) -> float:
        """Seconds of an image by itself."""
        self._begin()
        self._idle.wait()
        return self._taken()[0]

    def beside(self, iterate: Callable[[], float], count: int) -> tuple[list[float], list[float]]:
        """Seconds of iterations, and of so many images or more, that ran all the time beside each other."""
        iterations: list[float] = []
        images: list[float] = []
        self._goes_on = True
        self._begin()
        while len(images) < count:
            iterations.append(iterate())
            images += self._taken()
        self._goes_on = False
        self._idle.wait()
        self._taken()
        return iterations, images

    def _begin(self) -> None:
        self._idle.clear()
        self._lane.submit(self._picture)

    def _done(self) -> None:
        """In the lane's thread: an image is there."""
        if self._goes_on:
            self._lane.submit(self._picture)
        else:
            self._idle.set()

    def _taken(self) -> list[float]:
        done = self._lane.take()
        for each in done:
            if each.embeddings is None:
                raise InvalidInput(f"An image cannot be encoded: {each.error}.")
        return [each.seconds for each in done]
