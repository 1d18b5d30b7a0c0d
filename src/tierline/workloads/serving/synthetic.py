"""`synthetic`: requests of chosen rates, lengths, images and shared prefixes, without any data.

Gaps: Gamma with coefficient of variation `cv` (1 = Poisson). Lengths: lognormal with median and sigma (of the
logarithm), at least 1. Images per request: 1 + Poisson(`images` − 1); `images=0`: text only. Sizes of images: lognormal
around `image_tokens`, `image_sigma`, at most 1280 unless the median is above. A share `prefix_share` of the requests
begins with one of `prefixes` texts of `prefix_tokens` each, drawn by Zipf's law; it comes before `text_tokens`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.workloads.serving.columns import Columns, Floats, Integers, Prefix
from tierline.workloads.serving.want import DEFAULT_REQUESTS, Want

DEFAULT_RATE = 10.0
LARGEST_IMAGE = 1280


@dataclass(frozen=True, slots=True)
class Options:
    cv: float = 1.0
    text_tokens: float = 300.0
    text_sigma: float = 1.0
    output_tokens: float = 150.0
    output_sigma: float = 0.8
    images: float = 1.0
    image_tokens: float = 700.0
    image_sigma: float = 0.5
    prefix_share: float = 0.0
    prefixes: int = 10
    prefix_tokens: int = 512


def build(path: str, options: Options, want: Want) -> Columns:
    """Rate 0 = 10 requests/s; without `seconds` and `requests` 1,000 of them. Raises InvalidInput for unusable options."""
    _check(options)
    rate = want.rate or DEFAULT_RATE
    count = want.requests or (0 if want.seconds else DEFAULT_REQUESTS)
    arrived_s = arrivals(want.rng("synthetic arrivals"), rate, options.cv, want.seconds, count)
    total = len(arrived_s)
    rng = want.rng("synthetic lengths")
    text = lengths(rng, options.text_tokens, options.text_sigma, total)
    output = lengths(rng, options.output_tokens, options.output_sigma, total)
    counts = np.zeros(total, np.int64)
    if options.images > 0.0:
        counts = 1 + rng.poisson(options.images - 1.0, total).astype(np.int64)
    largest = max(LARGEST_IMAGE, round(options.image_tokens))
    sizes = np.minimum(lengths(rng, options.image_tokens, options.image_sigma, int(counts.sum())), largest)
    found: tuple[Prefix, ...] = ()
    if options.prefix_share > 0.0:
        begins = rng.random(total) < options.prefix_share
        rank = np.floor(np.exp(rng.random(total) * np.log(options.prefixes + 1.0))).astype(np.int64)
        texts = [((f"synthetic-{want.part}-{n}", options.prefix_tokens),) for n in range(options.prefixes + 2)]
        found = tuple(texts[r] if b else () for r, b in zip(rank.tolist(), begins.tolist(), strict=True))
        text = text + np.where(begins, options.prefix_tokens, 0)
    kind = "images" if options.images > 0.0 else "text"
    return Columns(arrived_s, text, output, counts, sizes, np.zeros(total, np.int64), (f"synthetic/{kind}",), found)


def arrivals(rng: np.random.Generator, rate: float, cv: float, seconds: float, requests: int) -> Floats:
    """Gamma gaps until `seconds` (0 = no end) or `requests` (0 = any number)."""
    shape = 1.0 / cv**2
    block = requests or round(1.1 * seconds * rate) + 100
    times = np.cumsum(rng.gamma(shape, 1.0 / (shape * rate), block))
    while not requests and times[-1] < seconds:
        times = np.concatenate([times, times[-1] + np.cumsum(rng.gamma(shape, 1.0 / (shape * rate), block))])
    return times[times < seconds] if seconds > 0.0 else times


def lengths(rng: np.random.Generator, median: float, sigma: float, count: int) -> Integers:
    drawn = median * np.exp(sigma * rng.standard_normal(count))
    return np.maximum(np.rint(drawn), 1.0).astype(np.int64)


def _check(options: Options) -> None:
    if (
        min(options.text_tokens, options.output_tokens, options.image_tokens, options.prefix_tokens, options.prefixes)
        < 1
    ):
        raise InvalidInput("the lengths of workload 'synthetic' and its number of prefixes must be at least 1.")
    if not 0.0 < options.cv < 100.0 or not 0.0 <= options.prefix_share <= 1.0:
        raise InvalidInput("cv of workload 'synthetic' must be above 0 and prefix_share in 0..1.")
    if min(options.text_sigma, options.output_sigma, options.image_sigma) < 0 or (
        options.images and options.images < 1
    ):
        raise InvalidInput("sigmas of workload 'synthetic' must not be below 0, and images must be 0 or at least 1.")
