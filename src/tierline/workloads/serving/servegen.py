"""`servegen:DIR`: our own sampler over ServeGen's clients (Xiang et al., NSDI'26; alibaba/ServeGen, Apache-2.0).

Arrivals of a client are a renewal process in operational time, Λ(t) = ∫ rate: gaps have mean 1 and the family and shape
of the window in which they begin; the first is drawn from the equilibrium, so the expected number of requests is Λ from
the first second on. All clients' rates are multiplied by one factor so that together they have the wanted rate on
average, as in the original; shapes stay. Text tokens, images per request, tokens of each image and output tokens are
drawn independently of each other (the original draws all scalars of a request from one random number, which makes long
prompts have long answers).

The day begins at `start_s` and begins anew at its end. `hold=1` keeps the window at `start_s` for ever: a stationary
stream.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.workloads.serving.columns import Columns, Floats, merged
from tierline.workloads.serving.servegen_files import Client, Window, read_clients
from tierline.workloads.serving.want import Want

DEFAULT_S = 600.0
MARGIN = 4.0  # standard deviations of a window's count that are drawn at once


@dataclass(frozen=True, slots=True)
class Options:
    start_s: float = 0.0
    hold: int = 0


def build(path: str, options: Options, want: Want) -> Columns:
    """Without `seconds` or `requests` ten minutes. Raises InvalidInput for unusable files or a start outside the day."""
    clients = read_clients(path)
    day = len(clients[0].windows)
    window_s = clients[0].window_s
    if not 0.0 <= options.start_s < day * window_s or options.hold not in (0, 1):
        raise InvalidInput(
            f"options of workload 'servegen': start_s lies in 0..{day * window_s:g} and hold is 0 or 1, but got "
            f"{options.start_s:g} and {options.hold}."
        )
    first = int(options.start_s // window_s)
    seconds = want.seconds or (0.0 if want.requests else DEFAULT_S)
    steps = math.ceil(seconds / window_s)

    def at(step: int) -> int:
        return first if options.hold else (first + step) % day

    asked = range(steps) if steps else range(day)
    weight = [min(window_s, seconds - step * window_s) if steps else window_s for step in asked]
    own = sum(c.windows[at(s)].rate * w for s, w in zip(asked, weight, strict=True) for c in clients) / sum(weight)
    if own <= 0.0:
        raise InvalidInput(f"workload 'servegen': no client sends anything from {options.start_s:g} s on.")
    factor = want.rate / own if want.rate else 1.0
    sources = [_Source(client, want, factor) for client in clients]
    parts: list[Columns] = []
    made = step = 0
    while step < steps or (not steps and made < want.requests):
        for source in sources:
            found = source.window(step, at(step))
            made += len(found)
            parts.append(found)
        step += 1
    whole = merged(parts)
    return _renamed(whole, [f"servegen/{client.number}" for client in clients]).limited(seconds, want.requests)


class _Source:
    """One client's requests, window by window. `due`: operational time from now to its next request."""

    def __init__(self, client: Client, want: Want, factor: float) -> None:
        self._client = client
        self._want = want
        self._factor = factor
        self._due = -1.0

    def window(self, step: int, number: int) -> Columns:
        """Requests of the `step`-th window from the start, which is window `number` of the day."""
        window, length_s = self._client.windows[number], self._client.window_s
        rng = self._want.rng("servegen", self._client.number, step)
        rate = window.rate * self._factor
        at = self._operational(window, rate * length_s, rng)
        count = len(at)
        period = self._client.period(window.begin_s)
        if count and int(period["output_tokens"].values[-1]) == 0:
            raise InvalidInput(
                f"ServeGen's client {self._client.number} sends requests at {window.begin_s:g} s, but has no lengths."
            )
        counts = period["image_count"].draw(rng, count)
        return Columns(
            arrived_s=step * length_s + at / rate if count else at,
            text_tokens=np.maximum(period["text_tokens"].draw(rng, count), 1),
            output_tokens=np.maximum(period["output_tokens"].draw(rng, count), 1),
            image_counts=counts,
            image_tokens=np.maximum(period["image_tokens"].draw(rng, int(counts.sum())), 1),
            stream=np.zeros(count, np.int64),
            streams=(str(self._client.number),),
        )

    def _operational(self, window: Window, length: float, rng: np.random.Generator) -> Floats:
        """Arrivals in [0, length) of operational time; what is over is carried into the next window."""
        if length <= 0.0:
            return np.zeros(0)
        if self._due < 0.0:
            self._due = equilibrium(window, rng)
        if self._due >= length:
            self._due -= length
            return np.zeros(0)
        times = np.array([self._due])
        while times[-1] < length:
            more = math.ceil(length - times[-1] + MARGIN * math.sqrt(length)) + 1
            times = np.concatenate([times, times[-1] + np.cumsum(gaps(window, rng, more))])
        inside = int(np.searchsorted(times, length))
        self._due = float(times[inside] - length)
        return times[:inside]


def gaps(window: Window, rng: np.random.Generator, count: int) -> Floats:
    """Gaps of mean 1 with the window's family and shape."""
    if window.family == "Gamma":
        return rng.gamma(window.shape, 1.0 / window.shape, count)
    return np.asarray(rng.weibull(window.shape, count) / math.gamma(1.0 + 1.0 / window.shape), np.float64)


def equilibrium(window: Window, rng: np.random.Generator) -> float:
    """From an arbitrary moment to the next request: a uniform part of a gap that is drawn in proportion to its length."""
    k = window.shape
    if window.family == "Gamma":
        gap = rng.gamma(k + 1.0, 1.0 / k)
    else:  # the density x·f(x) of a Weibull variable is that of a Gamma(1 + 1/k) variable's k-th root
        gap = rng.gamma(1.0 + 1.0 / k) ** (1.0 / k) / math.gamma(1.0 + 1.0 / k)
    return float(rng.random() * gap)


def _renamed(columns: Columns, names: list[str]) -> Columns:
    """One stream a client instead of one a window and client."""
    known = {name: number for number, name in enumerate(names)}
    place = np.array([known[f"servegen/{name}"] for name in columns.streams], np.int64)
    return Columns(
        columns.arrived_s, columns.text_tokens, columns.output_tokens, columns.image_counts, columns.image_tokens,
        place[columns.stream], tuple(names),
    )  # fmt: skip
