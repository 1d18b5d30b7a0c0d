"""What is done to a workload after its sources have made it: bursts, drift of the mix, pictures that come again.

Bursts and drift move requests in time and change nothing else: a stream of mean rate λ gets the intensity λ · f(t), f of
mean 1, by sending its k-th request at F⁻¹(t_k), F(t) = ∫ f. So the number of requests, their order within a modality and
the mean rate stay what they were.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tierline.workloads.serving.columns import Columns, Floats, Integers

DRIFT_STEPS = 1000


@dataclass(frozen=True, slots=True)
class Bursts:
    """For `burst_s` at the end of every `every_s` seconds, requests with images come `factor` times as often as between."""

    every_s: float
    burst_s: float
    factor: float

    def after(self, mean_s: Floats) -> Floats:
        """Where the times of a steady stream go."""
        quiet_s = self.every_s - self.burst_s
        base = self.every_s / (quiet_s + self.factor * self.burst_s)  # intensity between bursts, mean 1 over a period
        periods = np.floor(mean_s / self.every_s)
        inside = mean_s - periods * self.every_s
        turn = base * quiet_s
        moved = np.where(inside < turn, inside / base, quiet_s + (inside - turn) / (base * self.factor))
        return np.asarray(periods * self.every_s + np.minimum(moved, self.every_s), np.float64)


@dataclass(frozen=True, slots=True)
class Drift:
    """The share of requests with images goes evenly from `first` to `last` within `seconds`; all together as many."""

    first: float
    last: float
    seconds: float

    @property
    def mean(self) -> float:
        return (self.first + self.last) / 2.0

    def after(self, mean_s: Floats, images: bool) -> Floats:
        """Where the times of a steady stream of requests with (or without) images go."""
        first, last = (self.first, self.last) if images else (1.0 - self.first, 1.0 - self.last)
        mean = (first + last) / 2.0
        if mean <= 0.0:
            return mean_s
        at = np.linspace(0.0, self.seconds, DRIFT_STEPS + 1)
        sent = (first * at + (last - first) * at**2 / (2.0 * self.seconds)) / mean  # F(t), from 0 to `seconds`
        inside = np.interp(mean_s, sent, at)
        return np.asarray(np.where(mean_s > self.seconds, mean_s, inside), np.float64)


def moved(columns: Columns, bursts: Bursts | None, drift: Drift | None) -> Columns:
    """Drift first, then bursts of what has images."""
    times = columns.arrived_s
    if drift is not None:
        times = np.where(columns.has_images, drift.after(times, images=True), drift.after(times, images=False))
    if bursts is not None:
        times = np.where(columns.has_images, bursts.after(times), times)
    return columns.at(times) if bursts is not None or drift is not None else columns


def pictures(columns: Columns, repeat: float, rng: np.random.Generator) -> tuple[Integers, Integers]:
    """Which picture each image is, numbered by first appearance, and how many tokens it has.

    An image is, with probability `repeat`, one that an earlier request had; which one is drawn by Zipf's law (exponent 1)
    over the pictures in the order of their first appearance: a few come again and again. It has that picture's size then,
    so sizes of repeated images are not independent draws. The first request's images are always new.
    """
    counts = columns.image_counts
    total = int(counts.sum())
    again = rng.random(total) < repeat
    draws = rng.random(total)
    owner = np.repeat(np.arange(len(columns)), counts)
    if total:
        again &= owner != owner[0]
    new = np.cumsum(~again)
    begins = np.cumsum(counts) - counts
    known = np.concatenate([[0], new])[begins[owner]]  # pictures seen before this request
    # P(rank ≤ r) = ln(r + 1) / ln(known + 1): the inverse is (known + 1)^u, rounded down
    rank = np.floor(np.exp(draws * np.log(known + 1.0))).astype(np.int64)
    which = np.where(again, np.minimum(rank, np.maximum(known, 1)) - 1, new - 1)
    sizes = columns.image_tokens[~again]
    return which, sizes[which]
