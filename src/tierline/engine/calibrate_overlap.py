"""How much iterations and the encoder slow each other on this machine: each alone, then both at once, by turns."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

from tierline.core.errors import InvalidInput
from tierline.core.request import Picture
from tierline.engine.encoder import EncoderLane
from tierline.engine.families.text import TextFamily
from tierline.perf.device_sharing import Overlap

ITERATIONS, IMAGES = 10, 2  # of a turn
FEWEST = 3  # iterations alone, where the time is over
MOST_TURNS = 20


@dataclass(frozen=True, slots=True)
class Iteration:
    """One of so many new tokens; `run` runs it and returns its seconds."""

    tokens: int
    run: Callable[[], float]


def measure_overlap(
    family: TextFamily,
    picture: Picture,
    decodes: Iteration,
    prompt: Iteration,
    ridge_tokens: int,
    until: float,
    report: Callable[[int], None] = lambda turns: None,
) -> Overlap:
    """`perf.device_sharing.Overlap` of what `decodes` and `prompt` run and this picture; a turn at least, and none is begun
    after `until` (monotonic seconds). `report` is told the number of turns. Raises `InvalidInput` where the picture cannot be
    encoded."""
    images = _Images(family, picture)
    alone: list[float] = []
    turns: dict[Iteration, list[tuple[float, float]]] = {decodes: [], prompt: []}
    try:
        images.one()  # warms up
        for number in range(MOST_TURNS):
            alone += [images.one() for _ in range(IMAGES)]
            for iteration, found in turns.items():
                by_itself: list[float] = []
                while len(by_itself) < (ITERATIONS if time.monotonic() < until else FEWEST):
                    by_itself.append(iteration.run())
                beside, slowed = images.beside(iteration.run, IMAGES)
                found.append((median(beside) / median(by_itself), median(slowed)))
            report(number + 1)
            if time.monotonic() > until:
                break
    finally:
        images.close()
    image_s, ridge = median(alone), max(2.0, float(ridge_tokens))

    def slowdown(iteration: Iteration) -> float:
        """Of both: the model has them slow each other alike."""
        iterations, slowed = zip(*turns[iteration], strict=True)
        return max(1.0, math.sqrt(median(iterations) * median(slowed) / image_s))

    return Overlap(
        ridge,
        encoder_arithmetic=max(0.0, slowdown(prompt) - min(1.0, prompt.tokens / ridge)),
        encoder_bandwidth=max(0.0, slowdown(decodes) - min(1.0, ridge / decodes.tokens)),
    )


class _Images:
    """The same picture again and again, through a lane."""

    def __init__(self, family: TextFamily, picture: Picture) -> None:
        self._lane = EncoderLane(family, self._done)
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
