"""Prompts of a simulated run: token sequences that mean nothing but where they agree, and the names of their KV blocks.

A prompt is a row of segments: the pieces of its shared prefix, its images, and text of its own. All tokens of a text segment
are one number that stands for the segment and everything before it, so two prompts begin alike exactly as far as their
segments do, and the block keys follow from segments without a look at the tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

from tierline.core.request import ImageSpan, Request, Sampling
from tierline.core.served_trace import TracedRequest
from tierline.schedulers.kv_blocks import Key

TOKEN = 0  # what a simulated engine draws,
END = -1  # and at the end of an answer
PLACEHOLDER = -2  # of all images

_SHIFT = 24  # a key is the number of a segment and, in so many bits, that of a block
Segments = tuple[tuple[int, int], ...]  # (position behind it, its number)


class Prompts:
    """Makes requests of traced ones. `max_tokens`: what every client asks for at most; the true length is not in a request.
    `Prompts` are the `BlockKeys` of the requests they have made."""

    def __init__(self, max_tokens: int) -> None:
        self._sampling = Sampling(max_tokens=max_tokens)
        self._numbers: dict[tuple[int, str, int], int] = {}  # (number before, key, tokens) of shared segments
        self._next = 1
        self._segments: dict[str, Segments] = {}  # by request; the last one is its output

    def request(self, request_id: str, traced: TracedRequest) -> Request:
        """The request as a client sends it."""
        before, at = 0, 0
        segments: list[tuple[int, int]] = []
        images: list[ImageSpan] = []
        prompt: list[int] = []
        for key, tokens in traced.prefix:
            before = self._shared(before, "text " + key, tokens)
            at += tokens
            segments.append((at, before))
            prompt += [before] * tokens
        text = traced.text_tokens - at
        for image in traced.images:
            before = self._shared(before, "image " + image.content_hash, image.tokens)
            images.append(ImageSpan(image.content_hash, at, image.tokens))
            at += image.tokens
            segments.append((at, before))
            prompt += [PLACEHOLDER] * image.tokens
        if text > 0:
            before = self._own()
            segments.append((at + text, before))
            prompt += [before] * text
        segments.append((1 << 62, self._own()))
        self._segments[request_id] = tuple(segments)
        return Request(request_id, tuple(prompt), self._sampling, tuple(images), traced.priority, traced.arrived_ns)

    def extend(self, keys: list[Key], request: Request, tokens: Sequence[int], blocks: int, block_tokens: int) -> None:
        """`BlockKeys.extend`."""
        name = request.request_id
        segments = self._segments.get(name) or self._segments[name.rpartition("#")[0]]
        for end, number in segments:
            last = min(end // block_tokens, blocks)
            if last > len(keys):
                base = number << _SHIFT
                keys.extend(range(base + len(keys), base + last))

    def _shared(self, before: int, key: str, tokens: int) -> int:
        number = self._numbers.setdefault((before, key, tokens), self._next)
        self._next += number == self._next
        return number

    def _own(self) -> int:
        self._next += 1
        return self._next - 1
