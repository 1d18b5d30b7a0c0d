"""A traced request -> the bytes of a chat request with real text and real pictures of about its tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tierline.core.served_trace import TracedImage, TracedRequest
from tierline.workloads.replaying.pictures import Pictures
from tierline.workloads.replaying.survey import Survey
from tierline.workloads.replaying.words import Words
from tierline.workloads.serving.sizes import QWEN2_UNIT_PX, picture_px

FIXED_SIDE_PX = 448
"""Of pictures for models that make as many tokens of any: larger ones only cost the server's time to shrink them."""


@dataclass(frozen=True, slots=True)
class Composer:
    """Pure, but for the pictures it has drawn. `salt` tells runs apart: with another one nothing is cached from before."""

    survey: Survey
    salt: str
    words: Words
    pictures: Pictures

    @classmethod
    def make(cls, survey: Survey, salt: str) -> Composer:
        return cls(survey, salt, Words(), Pictures(salt))

    def sizes(self, requests: Sequence[TracedRequest]) -> list[tuple[int, int]]:
        """Every size of picture that `requests` have, to be drawn before they are due."""
        return sorted({self.size(image) for request in requests for image in request.images})

    def size(self, image: TracedImage) -> tuple[int, int]:
        """(width, height) in px."""
        if self.survey.unit_px:
            return picture_px(image.tokens, self.survey.unit_px)
        width, height = picture_px(image.tokens, QWEN2_UNIT_PX)
        longest = max(width, height)
        if self.survey.image_tokens and longest > FIXED_SIDE_PX:
            return max(1, width * FIXED_SIDE_PX // longest), max(1, height * FIXED_SIDE_PX // longest)
        return width, height

    def fitted(self, request: TracedRequest) -> TracedRequest:
        """Within the server's context, where it told one: the last images go, then text, then answer."""
        room = self.survey.context_tokens - self.survey.template_tokens
        each = self.survey.image_tokens
        if not self.survey.context_tokens:
            return request
        images: list[TracedImage] = []
        taken = 0
        for image in request.images:
            taken += each or image.tokens
            if taken > room - 2:
                taken -= each or image.tokens
                break
            images.append(image)
        text = min(request.text_tokens, max(room - taken - request.output_tokens, 1))
        output = max(min(request.output_tokens, room - taken - text), 1)
        if (len(images), text, output) == (len(request.images), request.text_tokens, request.output_tokens):
            return request
        return replace(request, images=tuple(images), text_tokens=text, output_tokens=output)

    def body(self, number: int, request: TracedRequest) -> bytes:
        """The request's JSON. Its prefix, its images, then text that is its own."""
        wanted = self._words(max(request.text_tokens - self.survey.template_tokens, 1))
        prefix, said, tokens = [], 0, 0
        for key, count in request.prefix:
            tokens += count
            words = min(self._words(tokens), wanted) - said
            said += words
            prefix.append(self.words.text(f"{self.salt} prefix {key}", words))
        shared = " ".join(part for part in prefix if part)
        own = self.words.text(f"{self.salt} request {number}", max(wanted - said, 1))
        if request.images:
            content = (
                b"["
                + b",".join(
                    [_text(shared)] * bool(shared) + [self._image(image) for image in request.images] + [_text(own)]
                )
                + b"]"
            )
        else:
            content = json.dumps(f"{shared} {own}".lstrip()).encode()
        settings = {
            "model": self.survey.model,
            "max_tokens": request.output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.survey.takes_ignore_eos:
            settings["ignore_eos"] = True
        if request.priority:
            settings["priority"] = request.priority
        head = json.dumps(settings).encode()
        return head[:-1] + b',"messages":[{"role":"user","content":' + content + b"}]}"

    def _words(self, tokens: int) -> int:
        return max(1, round(tokens / self.survey.tokens_per_word))

    def _image(self, image: TracedImage) -> bytes:
        data = self.pictures.base64(image.content_hash, *self.size(image))
        return b'{"type":"image_url","image_url":{"url":"data:image/png;base64,' + data + b'"}}'


def _text(text: str) -> bytes:
    return b'{"type":"text","text":' + json.dumps(text).encode() + b"}"
