"""Nouns of the serving tier: roles, sampling, images, requests, tokens made. Frozen facts, no behaviour beyond parsing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntFlag
from typing import Literal

from msgspec import Struct

from tierline.core.errors import InvalidInput

FinishReason = Literal["stop", "length", "abort", "error"]
CHAT_PREFIX, COMPLETION_PREFIX = "chatcmpl-", "cmpl-"  # of an answer's id, before its client's id


class Role(IntFlag):
    """What an instance may do. Every instance holds all weights, so a role is a permission and changes without a reload."""

    ENCODE = 1
    PREFILL = 2
    DECODE = 4

    @property
    def letters(self) -> str:
        """`EPD`, `PD`, `-` for none."""
        return "".join(role.name[0] for role in Role if role in self and role.name) or "-"

    @classmethod
    def parse(cls, letters: str) -> Role:
        """`EPD` in any order. Raises `InvalidInput`.

        >>> Role.parse("pd") == Role.PREFILL | Role.DECODE
        True
        """
        roles = Role(0)
        for letter in letters.upper():
            if letter not in "EPD":
                raise InvalidInput(f"roles '{letters}': letters of E (encode), P (prefill), D (decode) are allowed.")
            roles |= {"E": cls.ENCODE, "P": cls.PREFILL, "D": cls.DECODE}[letter]
        if not roles:
            raise InvalidInput("roles '': at least one letter of E (encode), P (prefill), D (decode) is needed.")
        return roles


ALL_ROLES = Role.ENCODE | Role.PREFILL | Role.DECODE


@dataclass(frozen=True, slots=True)
class Sampling:
    """How a request's tokens are drawn.

    `temperature` 0 = greedy. `top_k` 0, `top_p` 1, `min_p` 0, penalties 0 (`repetition_penalty` 1) = off. The draw for
    the n-th output token depends on (`seed`, n) alone, so it is the same after a migration, a preemption or a crash.
    `stop_token_ids` end the answer (the model's own end tokens do too, unless `ignore_eos`); neither can be drawn before
    `min_tokens`. `logprobs` None = none, else so many alternatives beside the token drawn. Stop strings are text, so the
    front door looks for them.
    """

    max_tokens: int
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    logit_bias: tuple[tuple[int, float], ...] = ()


class ImageSpan(Struct, frozen=True):
    """One image inside a prompt: `tokens` placeholder positions from `start` on, and the hash of the file it came from.

    `grid` is what a family needs to know of its size (empty where all images have one size).
    """

    content_hash: str
    start: int
    tokens: int
    grid: tuple[int, ...] = ()

    @property
    def end(self) -> int:
        return self.start + self.tokens


class Request(Struct, frozen=True):
    """One answer to be made. `prompt` holds the token ids with every image's placeholders in place.

    `made` are output tokens that were already told to the client, before the instance that made them was lost: they are
    computed again as if they were prompt, and count as output in `sampling`. Higher `priority` goes first; it is the
    server's own scale (the front door negates vLLM's). `client_id`: what its client calls it (X-Request-Id); several
    requests may have the same.
    """

    request_id: str
    prompt: tuple[int, ...]
    sampling: Sampling
    images: tuple[ImageSpan, ...] = ()
    priority: int = 0
    arrived_ns: int = 0
    made: tuple[int, ...] = ()
    client_id: str = ""


def is_called(name: str, request_id: str, client_id: str) -> bool:
    """Whether `name` means this request: its own id, its client's, or the one of the answer.

    >>> [is_called(name, "r7", "abc") for name in ("r7", "abc", "chatcmpl-abc", "cmpl-abc", "ab")]
    [True, True, True, True, False]
    """
    return name == request_id or (
        client_id != "" and name in (client_id, CHAT_PREFIX + client_id, COMPLETION_PREFIX + client_id)
    )


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded image: `rgb` holds height x width x 3 bytes, row by row. `content_hash` is of the file it came from."""

    content_hash: str
    width: int
    height: int
    rgb: bytes


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Log-probability of a token drawn, of the model's own distribution (before temperature, penalties and cuts), and the
    `top` alternatives as (token id, log-probability), most likely first."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class TokensMade(Struct, frozen=True):
    """Output tokens `first..first+len(tokens)` of a request. The last message of a request has a `finish`.

    `cached_tokens`: prompt tokens whose KV was found in a prefix cache. `logprobs` is empty or as long as `tokens`.
    """

    request_id: str
    first: int
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()
    finish: FinishReason | None = None
    cached_tokens: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """What the front door must know of a model. `context_tokens`: prompt and output together."""

    name: str
    context_tokens: int
    takes_images: bool
    vocabulary: int
    end_tokens: tuple[int, ...]
    max_images: int = 32
    generation_defaults: Mapping[str, float] = field(default_factory=dict)
