"""A serving workload while it is being made: one array a property, so that 100,000 requests take a second or two."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Prefix = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Columns:
    """Requests in order of arrival, seconds from 0. `image_tokens` holds the images of all requests one after the other,
    `image_counts` says how many belong to each. `prefixes`: one a request, or empty where none has any. `stream` indexes
    `streams`."""

    arrived_s: Floats
    text_tokens: Integers
    output_tokens: Integers
    image_counts: Integers
    image_tokens: Integers
    stream: Integers
    streams: tuple[str, ...]
    prefixes: tuple[Prefix, ...] = ()

    def __len__(self) -> int:
        return len(self.arrived_s)

    @property
    def has_images(self) -> NDArray[np.bool_]:
        return self.image_counts > 0

    def take(self, rows: Integers) -> Columns:
        """These rows, in this order; a row may be taken several times."""
        counts = self.image_counts[rows]
        begins = (np.cumsum(self.image_counts) - self.image_counts)[rows]
        return replace(
            self,
            arrived_s=self.arrived_s[rows],
            text_tokens=self.text_tokens[rows],
            output_tokens=self.output_tokens[rows],
            image_counts=counts,
            image_tokens=self.image_tokens[ranges(begins, counts)],
            stream=self.stream[rows],
            prefixes=tuple(self.prefixes[row] for row in rows.tolist()) if self.prefixes else (),
        )

    def at(self, arrived_s: Floats) -> Columns:
        """The same requests at other times, sorted by them; equal times keep their order."""
        order = np.argsort(arrived_s, kind="stable")
        moved = replace(self, arrived_s=arrived_s)
        return moved if bool((order[1:] > order[:-1]).all()) else moved.take(order)

    def limited(self, seconds: float, requests: int) -> Columns:
        """Those before `seconds`, at most `requests`; 0 = no limit."""
        end = int(np.searchsorted(self.arrived_s, seconds)) if seconds > 0.0 else len(self)
        end = min(end, requests) if requests > 0 else end
        return self if end == len(self) else self.take(np.arange(end))

    def within(self, context_tokens: int) -> tuple[Columns, NDArray[np.bool_]]:
        """No request longer than `context_tokens`, answer included: its last images go first, while one token of text and
        one of answer do not fit beside them; then text is cut; then the answer. With it: which images are still there."""
        if context_tokens <= 0:
            return self, np.ones(len(self.image_tokens), np.bool_)
        owner = np.repeat(np.arange(len(self)), self.image_counts)
        begins = np.cumsum(self.image_counts) - self.image_counts
        before = np.concatenate([[0], np.cumsum(self.image_tokens)])
        fits = before[1:] - before[begins[owner]] <= context_tokens - 2
        counts = np.bincount(owner[fits], minlength=len(self)).astype(np.int64)
        images = np.bincount(owner[fits], weights=self.image_tokens[fits], minlength=len(self)).astype(np.int64)
        text = np.minimum(self.text_tokens, np.maximum(context_tokens - images - self.output_tokens, 1))
        kept = replace(
            self,
            text_tokens=text,
            output_tokens=np.minimum(self.output_tokens, context_tokens - images - text),
            image_counts=counts,
            image_tokens=self.image_tokens[fits],
            prefixes=tuple(
                cut(prefix, tokens) for prefix, tokens in zip(self.prefixes, text.tolist(), strict=bool(self.prefixes))
            ),
        )
        return kept, fits


def ranges(begins: Integers, counts: Integers) -> Integers:
    """begins[0], begins[0] + 1, … (counts[0] of them), begins[1], …

    >>> ranges(np.array([5, 0]), np.array([2, 3])).tolist()
    [5, 6, 0, 1, 2]
    """
    offsets = np.cumsum(counts) - counts
    return np.asarray(np.arange(int(counts.sum())) + np.repeat(begins - offsets, counts), np.int64)


def cut(prefix: Prefix, tokens: int) -> Prefix:
    """As much of `prefix` as lies within the first `tokens`.

    >>> cut((("a", 512), ("b", 512)), 600)
    (('a', 512), ('b', 88))
    """
    if sum(size for _, size in prefix) <= tokens:
        return prefix
    kept = []
    for key, size in prefix:
        if tokens <= 0:
            break
        kept.append((key, min(size, tokens)))
        tokens -= size
    return tuple(kept)


def merged(parts: Sequence[Columns]) -> Columns:
    """All requests of all parts by time; at equal times in the order of the parts."""
    if len(parts) == 1:
        return parts[0]
    with_prefixes = any(part.prefixes for part in parts)
    firsts = np.cumsum([0, *(len(part.streams) for part in parts)])
    joined = Columns(
        arrived_s=np.concatenate([part.arrived_s for part in parts]),
        text_tokens=np.concatenate([part.text_tokens for part in parts]),
        output_tokens=np.concatenate([part.output_tokens for part in parts]),
        image_counts=np.concatenate([part.image_counts for part in parts]),
        image_tokens=np.concatenate([part.image_tokens for part in parts]),
        stream=np.concatenate([part.stream + first for part, first in zip(parts, firsts, strict=False)]),
        streams=tuple(name for part in parts for name in part.streams),
        prefixes=tuple(p for part in parts for p in (part.prefixes or ((),) * len(part))) if with_prefixes else (),
    )
    return joined.at(joined.arrived_s)
