"""What an instance's scheduler is told: by the serving scheduler, by its own engine, by its peers. Past tense.

A request is known on an instance by its *attempt* id, which the serving scheduler makes anew whenever it sends the request
again; so words about an earlier attempt can change nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.request import Request, Role


@dataclass(frozen=True, slots=True)
class RequestQueued:
    """The request `request.request_id` (an attempt) shall be prefilled here. `expected`: content hashes of images whose
    embeddings are on their way to this instance."""

    request: Request
    expected: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RequestCancelled:
    """Nobody waits for this attempt any more."""

    request_id: str


@dataclass(frozen=True, slots=True)
class EncodeAsked:
    """Encode this image (or take its embeddings from the pool) and deliver them to `to` ("" or our own name = here)."""

    content_hash: str
    to: str = ""


@dataclass(frozen=True, slots=True)
class EncodeEnded:
    """The encoder is done with an image: its embeddings take `size_bytes`, or `error` says why there are none."""

    content_hash: str
    size_bytes: int
    error: str = ""


@dataclass(frozen=True, slots=True)
class EmbeddingsArrived:
    """A peer's encoder has delivered an image's embeddings."""

    content_hash: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class EncodeFailed:
    """The encoder that was asked for this image could not make its embeddings."""

    content_hash: str
    error: str


@dataclass(frozen=True, slots=True)
class StepEnded:
    """The iteration `step` is done; `sampled` are the tokens drawn, as (attempt, token). `count` iterations of a step that
    allowed more than one; of sequences in lockstep those are named that drew an end token in the last of them."""

    step: int
    sampled: tuple[tuple[str, int], ...]
    count: int = 1


@dataclass(frozen=True, slots=True)
class RolesSet:
    """The instance may do these stages from now on."""

    roles: Role


@dataclass(frozen=True, slots=True)
class SleepAsked:
    """The instance shall give its memory up as soon as it has nothing to do."""


@dataclass(frozen=True, slots=True)
class WakeAsked:
    """The instance shall be as before its sleep, with these roles."""

    roles: Role


@dataclass(frozen=True, slots=True)
class WakeEnded:
    """The engine has its memory again, and a first batch has run."""


@dataclass(frozen=True, slots=True)
class MoveAsked:
    """The attempt shall go on at instance `to`."""

    request_id: str
    to: str


@dataclass(frozen=True, slots=True)
class MoveOffered:
    """Peer `source` wants to hand this attempt over; `tokens` it has KV for so far."""

    request: Request
    source: str
    tokens: int


@dataclass(frozen=True, slots=True)
class MoveAccepted:
    """Peer `peer` has room for the attempt and its KV of the first `cached_tokens` already."""

    request_id: str
    peer: str
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class MoveRefused:
    """The peer cannot take the attempt."""

    request_id: str
    peer: str
    reason: str


@dataclass(frozen=True, slots=True)
class MoveCancelled:
    """Peer `source` does not hand the attempt over after all. One that came from somebody else meanwhile is not meant."""

    request_id: str
    source: str


@dataclass(frozen=True, slots=True)
class RoundArrived:
    """KV of the positions `first..until` of an arriving attempt is in our arena. `made` are all output tokens so far;
    after the `final` round the attempt is ours."""

    request_id: str
    source: str
    first: int
    until: int
    made: tuple[int, ...]
    final: bool


@dataclass(frozen=True, slots=True)
class RoundTaken:
    """The peer has put a round into its arena."""

    request_id: str
    peer: str
    until: int


@dataclass(frozen=True, slots=True)
class MoveTaken:
    """The peer owns the attempt now: its blocks here are free."""

    request_id: str
    peer: str


@dataclass(frozen=True, slots=True)
class PeerLost:
    """The instance `peer` is gone with all that it had."""

    peer: str


InstanceEvent = (
    RequestQueued
    | RequestCancelled
    | EncodeAsked
    | EncodeEnded
    | EmbeddingsArrived
    | EncodeFailed
    | StepEnded
    | RolesSet
    | SleepAsked
    | WakeAsked
    | WakeEnded
    | MoveAsked
    | MoveOffered
    | MoveAccepted
    | MoveRefused
    | MoveCancelled
    | RoundArrived
    | RoundTaken
    | MoveTaken
    | PeerLost
)
