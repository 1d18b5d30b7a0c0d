"""Requests -> `ServedTrace`: checked, hashed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec
import numpy as np

from tierline.core.errors import InvalidInput
from tierline.core.nouns import NS_PER_S
from tierline.core.served_trace import ServedTrace, TracedImage, TracedRequest
from tierline.workloads.serving.columns import Columns, Integers

NS_PER_US = 1000


def workload_hash(requests: Sequence[TracedRequest]) -> str:
    """SHA-256 over every field of every request."""
    return hashlib.sha256(msgspec.json.encode(list(requests))).hexdigest()


def served_trace(source: str, requests: Sequence[TracedRequest]) -> ServedTrace:
    """Raises InvalidInput for no requests, unsorted arrivals, lengths below 1, a picture of two sizes, or a prefix that is
    longer than the text it begins."""
    if not requests:
        raise InvalidInput(f"workload '{source}' holds no requests.")
    sizes: dict[str, tuple[int, int]] = {}
    before = 0
    for number, request in enumerate(requests):
        if request.arrived_ns < before:
            raise InvalidInput(f"workload '{source}': request {number} arrives before the one ahead of it.")
        before = request.arrived_ns
        if request.text_tokens < 1 or request.output_tokens < 1:
            raise InvalidInput(f"workload '{source}': request {number} has a prompt or an answer without a token.")
        if request.prefix and sum(tokens for _, tokens in request.prefix) > request.text_tokens:
            raise InvalidInput(f"workload '{source}': the prefix of request {number} is longer than its text.")
        for image in request.images:
            size = image.tokens, image.patches
            if image.tokens < 1 or sizes.setdefault(image.content_hash, size) != size:
                raise InvalidInput(
                    f"workload '{source}': image '{image.content_hash}' of request {number} has no token or two sizes."
                )
    return ServedTrace(source, tuple(requests), workload_hash(requests))


def from_columns(source: str, columns: Columns, which: Integers, seed: int) -> ServedTrace:
    """`which`: the picture behind each image (shaping.pictures). Arrivals are rounded to the
    microsecond, so that the last bit of a processor's log() does not change the hash."""
    arrived_ns = (np.rint(columns.arrived_s * (NS_PER_S // NS_PER_US)).astype(np.int64) * NS_PER_US).tolist()
    made: dict[int, TracedImage] = {}
    images = [
        made.get(number) or made.setdefault(number, TracedImage(f"{seed}-{number}", tokens))
        for number, tokens in zip(which.tolist(), columns.image_tokens.tolist(), strict=True)
    ]
    ends = np.cumsum(columns.image_counts).tolist()
    requests = [
        TracedRequest(
            arrived_ns=arrived,
            text_tokens=text,
            output_tokens=output,
            images=tuple(images[end - count : end]) if count else (),
            prefix=prefix,
            stream=columns.streams[stream],
        )
        for arrived, text, output, count, end, prefix, stream in zip(
            arrived_ns,
            columns.text_tokens.tolist(),
            columns.output_tokens.tolist(),
            columns.image_counts.tolist(),
            ends,
            columns.prefixes or ((),) * len(columns),
            columns.stream.tolist(),
            strict=True,
        )
    ]
    return served_trace(source, requests)
