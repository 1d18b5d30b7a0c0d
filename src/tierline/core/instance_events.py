"""What an instance's scheduler is told: by the serving scheduler, by its own engine, by its peers. Past tense.

A request is known on an instance by its *attempt* id, which the serving scheduler makes anew whenever it sends the request
again; so words about an earlier attempt can change nothing.
"""

from __future__ import annotations

from msgspec import Struct

from tierline.core.request import Request, Role


class RequestQueued(Struct, frozen=True):
    """The request `request.request_id` (an attempt) shall be prefilled here. `expected`: content hashes of images whose
    embeddings are on their way to this instance."""

    request: Request
    expected: tuple[str, ...] = ()


class RequestCancelled(Struct, frozen=True):
    """Nobody waits for this attempt any more."""

    request_id: str


class EncodeAsked(Struct, frozen=True):
    """Encode this image (or take its embeddings from the pool) and deliver them to `to` ("" or our own name = here)."""

    content_hash: str
    to: str = ""


class EncodeEnded(Struct, frozen=True):
    """The encoder is done with an image: its embeddings take `size_bytes`, or `error` says why there are none."""

    content_hash: str
    size_bytes: int
    error: str = ""


class EmbeddingsArrived(Struct, frozen=True):
    """A peer's encoder has delivered an image's embeddings."""

    content_hash: str
    size_bytes: int


class EncodeFailed(Struct, frozen=True):
    """The encoder that was asked for this image could not make its embeddings."""

    content_hash: str
    error: str


class StepEnded(Struct, frozen=True):
    """The iteration `step` is done; `sampled` are the tokens drawn, as (attempt, token). `count` iterations of a step that
    allowed more than one; of sequences in lockstep those are named that drew an end token in the last of them."""

    step: int
    sampled: tuple[tuple[str, int], ...]
    count: int = 1


class RolesSet(Struct, frozen=True):
    """The instance may do these stages from now on."""

    roles: Role


class SleepAsked(Struct, frozen=True):
    """The instance shall give its memory up as soon as it has nothing to do."""


class WakeAsked(Struct, frozen=True):
    """The instance shall be as before its sleep, with these roles."""

    roles: Role


class WakeEnded(Struct, frozen=True):
    """The engine has its memory again, and a first batch has run."""


class MoveAsked(Struct, frozen=True):
    """The attempt shall go on at instance `to`."""

    request_id: str
    to: str


class MoveOffered(Struct, frozen=True):
    """Peer `source` wants to hand this attempt over; `tokens` it has KV for so far."""

    request: Request
    source: str
    tokens: int


class MoveAccepted(Struct, frozen=True):
    """Peer `peer` has room for the attempt and its KV of the first `cached_tokens` already."""

    request_id: str
    peer: str
    cached_tokens: int


class MoveRefused(Struct, frozen=True):
    """The peer cannot take the attempt."""

    request_id: str
    peer: str
    reason: str


class MoveCancelled(Struct, frozen=True):
    """Peer `source` does not hand the attempt over after all. One that came from somebody else meanwhile is not meant."""

    request_id: str
    source: str


class RoundArrived(Struct, frozen=True):
    """KV of the positions `first..until` of an arriving attempt is in our arena. `made` are all output tokens so far;
    after the `final` round the attempt is ours."""

    request_id: str
    source: str
    first: int
    until: int
    made: tuple[int, ...]
    final: bool


class RoundTaken(Struct, frozen=True):
    """The peer has put a round into its arena."""

    request_id: str
    peer: str
    until: int


class MoveTaken(Struct, frozen=True):
    """The peer owns the attempt now: its blocks here are free."""

    request_id: str
    peer: str


class PeerLost(Struct, frozen=True):
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
