"""The Protocols between the front door, the text side of a model and what generates. The front door knows only these."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

from tierline.core.request import ImageSpan, Picture, Request, ServedModel, TokensMade


class TokenStream(Protocol):
    """Tokens of one answer -> text, a whole character at a time."""

    def push(self, token: int) -> str:
        """The text that `token` completes; "" while a character is unfinished."""
        ...

    def finish(self) -> str:
        """What is left at the end, with a replacement character for an unfinished one."""
        ...


class ModelText(Protocol):
    """Tokenizer, chat template and image placeholders of a model. Pure; callable from several threads."""

    @property
    def model(self) -> ServedModel: ...

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """Messages (content: a string, or parts {"type": "text"|"image"}) through the model's chat template, with one
        placeholder for each image. Raises `InvalidInput` where the template refuses."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]: ...

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of tokens, without special ones unless asked for."""
        ...

    def token_text(self, token: int) -> tuple[str, bytes]:
        """One token by itself, for log-probabilities: as text (possibly with replacement characters) and as bytes."""
        ...

    def stream(self, *, skip_special_tokens: bool = True) -> TokenStream: ...

    def place_images(
        self, tokens: Sequence[int], images: Sequence[tuple[str, int, int]]
    ) -> tuple[tuple[int, ...], tuple[ImageSpan, ...]]:
        """Tokens with each placeholder widened to its image's tokens, and where these lie. `images` are (content hash,
        width, height) in the order of the placeholders. Raises `InvalidInput` where their numbers differ."""
        ...


class Generator(Protocol):
    """Answers requests: the instances behind the front door, or an instant stand-in for its benchmark."""

    async def wants_pixels(self, content_hash: str) -> bool:
        """Whether an image of this hash would have to be encoded. False = its embeddings are cached somewhere."""
        ...

    def generate(self, request: Request, pictures: Mapping[str, Picture]) -> AsyncIterator[TokensMade]:
        """The answer as it is made. `pictures` by content hash; one may be missing where `wants_pixels` was False, and is
        then asked for by raising `PixelsNeeded` before the first token. Closing the iterator cancels the request and
        frees its KV. Raises `Overloaded` before the first token when too much waits already, `RequestLost` when the
        request could not be finished."""
        ...

    async def health(self) -> str:
        """ "" when requests are served, else a sentence that says what is wrong."""
        ...

    def metrics_text(self) -> str:
        """Prometheus lines of the instances (the front door adds its own)."""
        ...

    def status(self) -> dict[str, Any]:
        """Instances with roles, load and counters, for people and scripts (`/tierline/status`)."""
        ...

    def find(self, name: str) -> list[dict[str, Any]]:
        """Requests of this name (`core.request.is_called`), those that ended lately too (`/tierline/requests?id=`)."""
        ...
