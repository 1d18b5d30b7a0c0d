"""`name:PATH?key=value&…` -> a `ServedTrace`; sources are mixed with `+`. The one registry of serving workloads.

::

    azure:FILE?rate=6&seconds=600                                      one source
    servegen:DIR?rate=4+azure:FILE?rate=6                              two, each at its own rate
    mix?rate=10&mm_share=0.5&repeat=0.1&seconds=600+servegen:DIR+azure:FILE     ten a second, half of them with images

Options of the whole (`Whole`) stand behind a single source, or behind a leading `mix`; those of one source (its module's
`Options`, and its `rate` in a mix) behind that source. What they mean is told at `Whole`.
"""

from __future__ import annotations

import importlib
import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

from tierline.core.errors import InvalidInput, NotFound, UnknownName
from tierline.core.served_trace import ServedTrace
from tierline.workloads.serving.columns import Columns, merged
from tierline.workloads.serving.shaping import Bursts, Drift, moved, pictures
from tierline.workloads.serving.trace import from_columns
from tierline.workloads.serving.want import DEFAULT_REQUESTS, Want
from tierline.workloads.source import read_options

SERVING_WORKLOADS: dict[str, str] = {
    "servegen": "tierline.workloads.serving.servegen:build:Options",
    "azure": "tierline.workloads.serving.azure:build:Options",
    "azure-mm": "tierline.workloads.serving.azure:build_multimodal:MultimodalOptions",
    "burstgpt": "tierline.workloads.serving.burstgpt:build:Options",
    "mooncake": "tierline.workloads.serving.mooncake:build:Options",
    "synthetic": "tierline.workloads.serving.synthetic:build:Options",
}
"""Name -> "module:function:options"; the function takes (path, options, Want) and gives Columns."""

NEEDS_PATH = {"servegen": "folder", "azure": "file", "azure-mm": "file", "burstgpt": "file", "mooncake": "file"}
WITH_IMAGES = ("servegen", "azure-mm")
MIX = "mix"

_PLUS = re.compile(
    rf"\+(?=(?:{'|'.join(map(re.escape, sorted((*SERVING_WORKLOADS, MIX), key=len, reverse=True)))})(?:[:?+]|$))"
)


@dataclass(frozen=True, slots=True)
class Whole:
    """Options of a whole workload. 0 (shares: −1) = as its sources have it.

    rate: requests/s on average. Synthetic and ServeGen draw at it; traces are stretched to it (or thinned: `scale`).
    seconds, requests: where it ends, whichever comes first. seed: of all draws.
    mm_share: share of requests from sources with images, the others from sources without; `synthetic` alone has both
        kinds (default 0.5). mm_share_end: drifts there evenly over `seconds`.
    repeat: share of images that an earlier request had (Zipf over pictures).
    burst_every_s, burst_s, burst_factor: for the last burst_s of every burst_every_s, requests with images come
        burst_factor times as often as between; their mean rate stays.
    context: longest request in tokens, answer included; longer ones lose images, then text, then answer.
    """

    rate: float = 0.0
    seconds: float = 0.0
    requests: int = 0
    seed: int = 0
    mm_share: float = -1.0
    mm_share_end: float = -1.0
    repeat: float = 0.0
    burst_every_s: float = 0.0
    burst_s: float = 0.0
    burst_factor: float = 1.0
    context: int = 0


@dataclass(frozen=True, slots=True)
class Part:
    """One source of a mix. `rate` 0 = its share of the whole's."""

    name: str
    path: str
    options: Any
    rate: float

    @property
    def has_images(self) -> bool:
        return self.name in WITH_IMAGES or (self.name == "synthetic" and self.options.images > 0)


def load_served(
    source: str, *, rate: float = 0.0, seconds: float = 0.0, requests: int = 0, seed: int | None = None
) -> ServedTrace:
    """Build the workload that `source` names. The keywords, where given, go before what `source` says of the whole.

    Raises UnknownName, NotFound or InvalidInput with one sentence. Same arguments, same trace.
    """
    whole, parts = parse(source)
    given: dict[str, Any] = {"rate": rate, "seconds": seconds, "requests": requests}
    whole = replace(whole, **{key: value for key, value in given.items() if value})
    whole = whole if seed is None else replace(whole, seed=seed)
    _check(whole)
    drift, parts = _shares(whole, parts)
    if len(parts) > 1 and not whole.seconds and not whole.requests:
        if any(part.name != "synthetic" for part in parts):  # each would end at a time of its own
            raise InvalidInput("a mix needs an end: seconds or requests, as in mix?seconds=600&rate=10+…")
        whole = replace(whole, requests=DEFAULT_REQUESTS)
    columns = merged(_named([_built(part, whole, number) for number, part in enumerate(parts)]))
    bursts = Bursts(whole.burst_every_s, whole.burst_s, whole.burst_factor) if whole.burst_every_s else None
    columns = moved(columns, bursts, drift).limited(whole.seconds, whole.requests)
    if not len(columns):
        raise InvalidInput(f"workload '{source}' holds no requests.")
    which, sizes = pictures(columns, whole.repeat, Want(seed=whole.seed).rng("pictures"))
    columns, kept = replace(columns, image_tokens=sizes).within(whole.context)
    return from_columns(source, columns, which[kept], whole.seed)


def parse(source: str) -> tuple[Whole, tuple[Part, ...]]:
    """The options of the whole and the sources. Raises UnknownName, NotFound or InvalidInput."""
    pieces = _PLUS.split(source)
    heads = [_head(piece) for piece in pieces]
    whole_keys = {field.name for field in fields(Whole)}
    if heads[0][0] == MIX:
        name, path, query = heads[0]
        if path:
            raise InvalidInput(f"'mix' takes no path, but got '{path}'; its sources follow behind '+'.")
        whole = cast("Whole", read_options(MIX, Whole, query))
        heads = heads[1:]
        if not heads:
            raise InvalidInput("'mix' needs sources behind it: mix?rate=10+servegen:DIR+azure:FILE.")
        allowed = {"rate"}
    elif len(heads) == 1:
        name, path, query = heads[0]
        pairs = parse_qsl(query, keep_blank_values=True)
        whole = cast("Whole", read_options(name, Whole, _query(p for p in pairs if p[0] in whole_keys)))
        allowed = whole_keys
    else:
        whole, allowed = Whole(), {"rate"}
    parts = tuple(_part(*head, whole_keys, allowed) for head in heads)
    if len(parts) == 1 and parts[0].rate:
        parts = (replace(parts[0], rate=0.0),)  # it is the whole's, too
    return whole, parts


def _head(piece: str) -> tuple[str, str, str]:
    head, _, query = piece.partition("?")
    name, _, path = head.partition(":")
    return name, path, query


def _query(pairs: Any) -> str:
    return "&".join(f"{key}={value}" for key, value in pairs)


def _part(name: str, path: str, query: str, whole_keys: set[str], allowed: set[str]) -> Part:
    if name not in SERVING_WORKLOADS:
        raise UnknownName("serving workload", name, (*SERVING_WORKLOADS, MIX))
    kind = NEEDS_PATH.get(name)
    if kind is None and path:
        raise InvalidInput(f"workload '{name}' is synthetic and takes no path, but got '{path}'.")
    if kind is not None and not (path and (Path(path).is_dir() if kind == "folder" else Path(path).is_file())):
        raise NotFound(f"workload '{name}' needs a {kind}: '{name}:PATH', and there is none at '{path}'.")
    own, rate = [], 0.0
    module_name, _, kind_name = SERVING_WORKLOADS[name].split(":")
    kind_of_options = getattr(importlib.import_module(module_name), kind_name)
    own_keys = {field.name for field in fields(kind_of_options)}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key in own_keys:
            own.append((key, value))
        elif key not in whole_keys:
            raise UnknownName(f"option of workload '{name}'", key, own_keys | allowed)
        elif key not in allowed:
            raise InvalidInput(f"option '{key}' is one of the whole mix: write mix?{key}={value}+{name}…")
        elif key == "rate":
            rate = _rate(name, value)
    options = read_options(name, kind_of_options, _query(own))
    for key in own_keys:
        value = getattr(options, key)
        if isinstance(value, float) and not math.isfinite(value):
            raise InvalidInput(f"option '{key}' of workload '{name}' must be a finite number.")
    return Part(name, path, options, rate)


def _rate(name: str, text: str) -> float:
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0.0 < rate < math.inf:
        raise InvalidInput(f"option 'rate' of workload '{name}' is requests per second above 0, but got '{text}'.")
    return rate


def _check(whole: Whole) -> None:
    numbers = [getattr(whole, field.name) for field in fields(Whole)]
    if not all(math.isfinite(number) for number in numbers):
        raise InvalidInput("options of a serving workload must be finite numbers.")
    if (
        min(whole.rate, whole.seconds, whole.requests, whole.seed, whole.context, whole.burst_every_s, whole.burst_s)
        < 0
    ):
        raise InvalidInput("rate, seconds, requests, seed, context, burst_every_s and burst_s must not be below 0.")
    if not 0.0 <= whole.repeat < 1.0:
        raise InvalidInput(f"repeat is a share of images from 0 to below 1, but got {whole.repeat:g}.")
    for name, share in (("mm_share", whole.mm_share), ("mm_share_end", whole.mm_share_end)):
        if share != -1.0 and not 0.0 <= share <= 1.0:
            raise InvalidInput(f"{name} is a share of requests in 0..1, but got {share:g}.")
    if whole.mm_share_end >= 0.0 and (whole.mm_share < 0.0 or not whole.seconds):
        raise InvalidInput("mm_share_end needs mm_share, from where, and seconds, within which the mix drifts.")
    if whole.burst_every_s and not (0.0 < whole.burst_s < whole.burst_every_s and whole.burst_factor > 0.0):
        raise InvalidInput("bursts need 0 < burst_s < burst_every_s and burst_factor above 0.")
    if not whole.burst_every_s and (whole.burst_s or whole.burst_factor != 1.0):
        raise InvalidInput("bursts need burst_every_s: the time from one burst to the next.")
    if 0 < whole.context < 8:
        raise InvalidInput(f"context is a number of tokens, 8 or more, but got {whole.context}.")


def _shares(whole: Whole, parts: tuple[Part, ...]) -> tuple[Drift | None, tuple[Part, ...]]:
    """Each part's rate out of the whole's rate and share of multimodal requests."""
    share = whole.mm_share
    if len(parts) == 1 and parts[0].name == "synthetic" and parts[0].has_images:
        share = 0.5 if share < 0.0 else share
        parts = (replace(parts[0], options=replace(parts[0].options, images=0.0)), parts[0])
        whole = replace(whole, rate=whole.rate or 10.0)
    elif len(parts) == 1:
        if share >= 0.0:
            raise InvalidInput(f"mm_share needs sources with and without images, but '{parts[0].name}' is one source.")
        return None, (replace(parts[0], rate=whole.rate),)
    rated = [part.rate > 0.0 for part in parts]
    if any(rated) and not all(rated):
        raise InvalidInput("in a mix either every source has a rate or none; 'mix?rate=…' sets that of the whole.")
    if share < 0.0:
        if not any(rated) and not whole.rate:
            raise InvalidInput("a mix needs rates: mix?rate=10&mm_share=0.5+servegen:DIR+azure:FILE, or one a source.")
        weights = [part.rate or 1.0 for part in parts]
        factor = whole.rate / sum(weights) if whole.rate else 1.0
        return None, tuple(replace(p, rate=w * factor) for p, w in zip(parts, weights, strict=True))
    last = whole.mm_share_end if whole.mm_share_end >= 0.0 else share
    drift = Drift(share, last, whole.seconds) if last != share else None
    total = whole.rate or sum(part.rate for part in parts)
    if not total:
        raise InvalidInput("mm_share needs a rate: mix?rate=10&mm_share=0.5+servegen:DIR+azure:FILE.")
    found = []
    for part in parts:
        alike = [other.rate or 1.0 for other in parts if other.has_images == part.has_images]
        wanted = (share + last) / 2.0 if part.has_images else 1.0 - (share + last) / 2.0
        if len(alike) == len(parts):
            raise InvalidInput("mm_share needs sources with and without images in the mix.")
        found.append(replace(part, rate=total * wanted * (part.rate or 1.0) / sum(alike)))
    return drift, tuple(part for part in found if part.rate > 0.0)


def _named(parts: list[Columns]) -> list[Columns]:
    """A stream's name twice in a mix: the second is `name#2`."""
    seen: Counter[str] = Counter()
    named = []
    for part in parts:
        seen.update(part.streams)
        names = tuple(name if seen[name] == 1 else f"{name}#{seen[name]}" for name in part.streams)
        named.append(replace(part, streams=names))
    return named


def _built(part: Part, whole: Whole, number: int) -> Columns:
    module_name, function, _ = SERVING_WORKLOADS[part.name].split(":")
    build = cast("Callable[[str, object, Want], Columns]", getattr(importlib.import_module(module_name), function))
    return build(part.path, part.options, Want(part.rate, whole.seconds, whole.requests, whole.seed, number))
