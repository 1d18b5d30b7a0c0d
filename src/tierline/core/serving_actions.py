"""What the serving scheduler wants done: words to instances, answers to clients. Imperative."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.request import ALL_ROLES, Request, Role, TokensMade
from tierline.core.routing_view import Group


@dataclass(frozen=True, slots=True)
class QueueAttempt:
    """Have `instance` prefill `request` (its id is the attempt's); embeddings of `expected` are on their way there."""

    instance: str
    request: Request
    expected: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class EncodeOn:
    """Have `instance` encode an image for instance `to`, with the pixels that came with `pixels_of` ("" = it has the
    embeddings already)."""

    instance: str
    content_hash: str
    to: str
    pixels_of: str
    reason: str


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    instance: str
    attempt: str


@dataclass(frozen=True, slots=True)
class MoveAttempt:
    """Have `instance` hand an attempt over to instance `to`."""

    instance: str
    attempt: str
    to: str
    reason: str


@dataclass(frozen=True, slots=True)
class SetRoles:
    instance: str
    roles: Role
    reason: str


@dataclass(frozen=True, slots=True)
class SetGroup:
    """The instance serves this group from now on. Instances need not know; requests that are there end there."""

    instance: str
    group: Group
    reason: str


@dataclass(frozen=True, slots=True)
class StartInstance:
    """Start one more instance; it joins when it is ready."""

    group: Group
    reason: str


@dataclass(frozen=True, slots=True)
class StopInstance:
    """End this instance, which has nothing to do any more; its loss is then told as any other."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class SleepInstance:
    """Have this instance, which has nothing to do any more, give up its memory; its weights wait on the host."""

    instance: str
    reason: str


@dataclass(frozen=True, slots=True)
class WakeInstance:
    """Have a sleeping instance take its memory again; it has these roles from its first batch on. A policy names no roles."""

    instance: str
    group: Group
    reason: str
    roles: Role = ALL_ROLES


@dataclass(frozen=True, slots=True)
class NotifyLost:
    """Tell `instance` that its peer `lost` is gone."""

    instance: str
    lost: str


@dataclass(frozen=True, slots=True)
class Answer:
    """Tell the client of these tokens."""

    tokens: TokensMade


@dataclass(frozen=True, slots=True)
class AskPixels:
    """The request cannot go on without the pixels of these images; it is to be submitted again with them and with what was
    made so far. Here it is forgotten."""

    request_id: str
    hashes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RecordServingRefusal:
    """What was asked for and not done. Recorded, so that nothing is dropped in silence."""

    subject: str
    reason: str


ServingAction = (
    QueueAttempt
    | EncodeOn
    | CancelAttempt
    | MoveAttempt
    | SetRoles
    | SetGroup
    | StartInstance
    | StopInstance
    | SleepInstance
    | WakeInstance
    | NotifyLost
    | Answer
    | AskPixels
    | RecordServingRefusal
)
