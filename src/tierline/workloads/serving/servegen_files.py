"""ServeGen's data of a production image service: files of clients -> windows and distributions.

A client is two files. `chunk-N-trace.csv`, a row per window of ten minutes: its begin (s), requests per second,
coefficient of variation of the gaps, family of the gaps (Gamma, Weibull, empty where nothing came), shape, scale.
`chunk-N-dataset.json`, an entry per six hours: discrete distributions {value: probability} of text tokens, images per
request, tokens per image, output tokens.
"""

from __future__ import annotations

import csv
import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.workloads.serving.columns import Floats, Integers
from tierline.workloads.serving.tables import stamp

FAMILIES = ("Gamma", "Weibull")
SCALARS = ("text_tokens", "image_count", "image_tokens", "output_tokens")
UNUSED = ("audio_count", "video_count")


@dataclass(frozen=True, slots=True)
class Window:
    """Ten minutes of a client. `family` is '' where `rate` is 0."""

    begin_s: float
    rate: float
    family: str
    shape: float


@dataclass(frozen=True, slots=True, eq=False)
class Discrete:
    """Values and the cumulative probability up to each."""

    values: Integers
    upto: Floats

    @property
    def mean(self) -> float:
        return float((self.values * np.diff(self.upto, prepend=0.0)).sum())

    def draw(self, rng: np.random.Generator, count: int) -> Integers:
        return self.values[np.searchsorted(self.upto, rng.random(count), side="right")]


Period = Mapping[str, Discrete]


@dataclass(frozen=True, slots=True, eq=False)
class Client:
    """`periods`: (begin in seconds, distributions by name), in order. Windows are as long as their distance."""

    number: int
    windows: tuple[Window, ...]
    window_s: float
    periods: tuple[tuple[float, Period], ...]

    def period(self, at_s: float) -> Period:
        found = self.periods[0][1]
        for begin_s, period in self.periods:
            if begin_s <= at_s:
                found = period
        return found


def read_clients(folder: str) -> tuple[Client, ...]:
    """All clients of `folder`, by number. Raises InvalidInput for files that are not ServeGen's, windows that do not fit
    each other, or audio and video, which are not simulated."""
    paths = sorted(Path(folder).glob("chunk-*"))
    return _read(folder, tuple((path.name, *stamp(path)) for path in paths))


@functools.lru_cache(maxsize=2)
def _read(folder: str, stamps: tuple[tuple[str, int, int], ...]) -> tuple[Client, ...]:
    numbers = sorted(int(match[1]) for name, _, _ in stamps if (match := re.fullmatch(r"chunk-(\d+)-trace\.csv", name)))
    if not numbers:
        raise InvalidInput(f"'{folder}' holds no chunk-N-trace.csv; ServeGen's data/multimodal/mm-image does.")
    clients = tuple(_client(Path(folder), number) for number in numbers)
    grids = {(len(client.windows), client.window_s) for client in clients}
    if len(grids) > 1:
        raise InvalidInput(f"'{folder}': the clients' windows differ in number or length.")
    return clients


def _client(folder: Path, number: int) -> Client:
    trace, dataset = folder / f"chunk-{number}-trace.csv", folder / f"chunk-{number}-dataset.json"
    try:
        with trace.open(newline="") as file:
            windows = tuple(_window(row) for row in csv.reader(file) if row)
    except (OSError, ValueError, IndexError) as error:
        raise InvalidInput(
            f"'{trace}': rows of begin, rate, CV, family (Gamma or Weibull), shape, scale are needed ({error})."
        ) from error
    begins = [window.begin_s for window in windows]
    steps = {round(b - a, 6) for a, b in pairwise(begins)}
    if len(steps) != 1 or min(steps) <= 0 or begins[0] != 0:
        raise InvalidInput(f"'{trace}': windows must begin at 0 and follow each other at one distance.")
    try:
        told = json.loads(dataset.read_text())
        periods = tuple(sorted(((float(key), _period(entry)) for key, entry in told.items()), key=lambda item: item[0]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidInput(
            f"'{dataset}': an object of periods with the distributions {', '.join(SCALARS)} is needed ({error})."
        ) from error
    if not periods:
        raise InvalidInput(f"'{dataset}' holds no period.")
    return Client(number, windows, steps.pop(), periods)


def _window(row: list[str]) -> Window:
    begin_s, rate, family = float(row[0]), float(row[1]), row[3].strip()
    if not (math.isfinite(begin_s) and 0.0 <= rate < math.inf):
        raise ValueError(f"rate {row[1]} at {row[0]} s")
    if rate == 0.0:
        return Window(begin_s, 0.0, "", 1.0)
    shape = float(row[4])
    if family not in FAMILIES or not 0.0 < shape < math.inf:
        raise ValueError(f"family '{family}' with shape {row[4]} at {row[0]} s")
    return Window(begin_s, rate, family, shape)


def _period(entry: Mapping[str, Any]) -> Period:
    for name in UNUSED:
        if name in entry and set(_pairs(entry[name])) - {0}:
            raise ValueError(f"{name} above 0: audio and video are not simulated")
    return {name: _discrete(_pairs(entry[name])) for name in SCALARS}


def _pairs(text: str) -> dict[int, float]:
    """`{136: 0.25, 372: 0.75}`, a Python dict as text."""
    inner = text.strip()
    if not (inner.startswith("{") and inner.endswith("}")):
        raise ValueError(f"{text[:40]} is no distribution")
    return {int(key): float(value) for key, value in (pair.split(":") for pair in inner[1:-1].split(","))}


def _discrete(pairs: Mapping[int, float]) -> Discrete:
    values = np.array(sorted(pairs), np.int64)
    weights = np.array([pairs[value] for value in values.tolist()], np.float64)
    if not len(values) or int(values[0]) < 0 or float(weights.min()) < 0.0 or not 0.0 < float(weights.sum()) < math.inf:
        raise ValueError("a distribution without values, or with one below 0")
    upto = np.cumsum(weights / weights.sum())
    upto[-1] = 1.0
    return Discrete(values, upto)
