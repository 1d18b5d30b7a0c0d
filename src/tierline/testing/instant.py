"""An instant generator and a byte-level text side: the front door's stand-ins for tests and its benchmark.

>>> text = ByteText()
>>> text.encode("hé", add_special_tokens=False)
[104, 195, 169]
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

from tierline.core.errors import InvalidInput, PixelsNeeded, RequestLost, TierlineError
from tierline.core.request import FinishReason, ImageSpan, Picture, Request, ServedModel, TokenLogprob, TokensMade

END = 256
IMAGE = 257
VOCABULARY = 258
IMAGE_TEXT = "<image>"


class ByteStream:
    """Bytes to characters; special tokens say nothing unless asked to."""

    def __init__(self, *, skip_special_tokens: bool = True) -> None:
        self._skip = skip_special_tokens
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        if token >= END:
            return "" if self._skip else self._decoder.decode(b"", True) + ("<end>" if token == END else IMAGE_TEXT)
        return self._decoder.decode(bytes((token,)))

    def finish(self) -> str:
        return self._decoder.decode(b"", True)


class ByteText:
    """One token a byte, 256 ends, 257 stands for an image; an image has `image_tokens` positions."""

    def __init__(self, model: ServedModel | None = None, *, image_tokens: int = 16) -> None:
        self._model = model or ServedModel("instant", 8192, True, VOCABULARY, (END,), max_images=4)
        self._image_tokens = image_tokens

    @property
    def model(self) -> ServedModel:
        return self._model

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        lines = []
        for message in messages:
            content = message["content"]
            if not isinstance(content, str):
                content = "".join(IMAGE_TEXT if part["type"] == "image" else part["text"] for part in content)
            lines.append(f"{message['role']}: {content}\n")
        return "".join(lines) + ("assistant: " if options.get("add_generation_prompt", True) else "")

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        tokens: list[int] = []
        for number, piece in enumerate(text.split(IMAGE_TEXT)):
            tokens += ([IMAGE] if number else []) + list(piece.encode())
        return tokens

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        stream = self.stream(skip_special_tokens=skip_special_tokens)
        return "".join([*map(stream.push, tokens), stream.finish()])

    def token_text(self, token: int) -> tuple[str, bytes]:
        raw = bytes((token,)) if token < END else b"<end>" if token == END else IMAGE_TEXT.encode()
        return raw.decode(errors="replace"), raw

    def stream(self, *, skip_special_tokens: bool = True) -> ByteStream:
        return ByteStream(skip_special_tokens=skip_special_tokens)

    def place_images(
        self, tokens: Sequence[int], images: Sequence[tuple[str, int, int]]
    ) -> tuple[tuple[int, ...], tuple[ImageSpan, ...]]:
        if tokens.count(IMAGE) != len(images):
            raise InvalidInput(f"The prompt has {tokens.count(IMAGE)} places for {len(images)} images.")
        widened: list[int] = []
        spans: list[ImageSpan] = []
        for token in tokens:
            if token == IMAGE:
                content_hash, width, height = images[len(spans)]
                spans.append(ImageSpan(content_hash, len(widened), self._image_tokens, (height, width)))
                widened += [IMAGE] * self._image_tokens
            else:
                widened.append(token)
        return tuple(widened), tuple(spans)


class InstantGenerator:
    """Answers with `answer` (else it echoes the prompt's bytes), a token every `gap_s`, the first after `first_s`.

    `requests` keeps what was asked and with which pictures; `cancelled` the ids of those closed before their end.
    `fail` is asked before each request and may return an error to raise; `lose_after` tokens the request is lost.
    Images named in `cached` want no pixels; `forgets` names those it will have forgotten when asked to generate.
    """

    def __init__(self, answer: Sequence[int] | None = None, *, gap_s: float = 0.0, first_s: float = 0.0) -> None:
        self.answer = answer
        self.end = END
        self.gap_s = gap_s
        self.first_s = first_s
        self.chunk = 1
        self.cached_tokens = 0
        self.requests: list[tuple[Request, dict[str, Picture]]] = []
        self.cancelled: list[str] = []
        self.started = 0
        self.finished = 0
        self.fail: Callable[[Request], TierlineError | None] = lambda request: None
        self.lose_after: int | None = None
        self.cached: set[str] = set()
        self.forgets: set[str] = set()
        self.keep_requests = True
        self.caches_images = False
        self.ill = ""

    async def wants_pixels(self, content_hash: str) -> bool:
        return content_hash not in self.cached

    async def generate(self, request: Request, pictures: Mapping[str, Picture]) -> AsyncIterator[TokensMade]:
        self.started += 1
        if self.keep_requests:
            self.requests.append((request, dict(pictures)))
        error = self.fail(request)
        if error is not None:
            raise error
        missing = tuple(
            dict.fromkeys(
                span.content_hash
                for span in request.images
                if span.content_hash not in pictures
                and (span.content_hash in self.forgets or span.content_hash not in self.cached)
            )
        )
        if missing:
            raise PixelsNeeded(missing)
        if self.caches_images:
            self.cached.update(span.content_hash for span in request.images)
        tokens = self._tokens(request)
        made = 0
        lost = False
        try:
            if self.first_s:
                await asyncio.sleep(self.first_s)
            while made < len(tokens):
                if self.lose_after is not None and made >= self.lose_after:
                    lost = True
                    raise RequestLost("The instance was lost and there is no other.")
                if self.gap_s and made:
                    await asyncio.sleep(self.gap_s)
                some = tokens[made : made + self.chunk]
                ends = some[-1] == self.end or some[-1] in request.sampling.stop_token_ids
                finish: FinishReason | None = None if made + len(some) < len(tokens) else "stop" if ends else "length"
                first, made = made, made + len(some)
                yield TokensMade(request.request_id, first, some, _logprobs(request, some), finish, self.cached_tokens)
        finally:
            self.finished += made == len(tokens)
            if made < len(tokens) and not lost:
                self.cancelled.append(request.request_id)

    async def health(self) -> str:
        return self.ill

    def metrics_text(self) -> str:
        return f"# TYPE tierline:instant_requests_total counter\ntierline:instant_requests_total {self.started}\n"

    def status(self) -> dict[str, Any]:
        return {"instances": [], "started": self.started, "finished": self.finished, "cancelled": len(self.cancelled)}

    def find(self, name: str) -> list[dict[str, Any]]:
        return []

    def _tokens(self, request: Request) -> tuple[int, ...]:
        sampling = request.sampling
        said = tuple(token for token in request.prompt if token < END) if self.answer is None else tuple(self.answer)
        many = (said or (46,)) * (sampling.max_tokens // max(1, len(said)) + 1)
        said = many if sampling.ignore_eos else (*said, self.end)
        for position, token in enumerate(said):
            if token in sampling.stop_token_ids and position + 1 > sampling.min_tokens:
                return (*said[:position], token)[: sampling.max_tokens]
        return said[: sampling.max_tokens]


def _logprobs(request: Request, tokens: Sequence[int]) -> tuple[TokenLogprob, ...]:
    count = request.sampling.logprobs
    if count is None:
        return ()
    return tuple(
        TokenLogprob(-0.5, tuple(((token + other) % VOCABULARY, -0.5 - other) for other in range(count)))
        for token in tokens
    )
