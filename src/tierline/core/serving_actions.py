"""What the serving scheduler wants done: words to instances, answers to clients. Imperative."""

from __future__ import annotations

from msgspec import Struct

from tierline.core.request import ALL_ROLES, Request, Role, TokensMade
from tierline.core.routing_view import Group


class QueueAttempt(Struct, frozen=True):
    """Have `instance` prefill `request` (its id is the attempt's); embeddings of `expected` are on their way there."""

    instance: str
    request: Request
    expected: tuple[str, ...]
    reason: str


class EncodeOn(Struct, frozen=True):
    """Have `instance` encode an image for instance `to`, with the pixels that came with `pixels_of` ("" = it has the
    embeddings already)."""

    instance: str
    content_hash: str
    to: str
    pixels_of: str
    reason: str


class CancelAttempt(Struct, frozen=True):
    instance: str
    attempt: str


class MoveAttempt(Struct, frozen=True):
    """Have `instance` hand an attempt over to instance `to`."""

    instance: str
    attempt: str
    to: str
    reason: str


class SetRoles(Struct, frozen=True):
    instance: str
    roles: Role
    reason: str


class SetGroup(Struct, frozen=True):
    """The instance serves this group from now on. Instances need not know; requests that are there end there."""

    instance: str
    group: Group
    reason: str


class StartInstance(Struct, frozen=True):
    """Start one more instance; it joins when it is ready."""

    group: Group
    reason: str


class StopInstance(Struct, frozen=True):
    """End this instance, which has nothing to do any more; its loss is then told as any other."""

    instance: str
    reason: str


class SleepInstance(Struct, frozen=True):
    """Have this instance, which has nothing to do any more, give up its memory; its weights wait on the host."""

    instance: str
    reason: str


class WakeInstance(Struct, frozen=True):
    """Have a sleeping instance take its memory again; it has these roles from its first batch on. A policy names no roles."""

    instance: str
    group: Group
    reason: str
    roles: Role = ALL_ROLES


class NotifyLost(Struct, frozen=True):
    """Tell `instance` that its peer `lost` is gone."""

    instance: str
    lost: str


class Answer(Struct, frozen=True):
    """Tell the client of these tokens."""

    tokens: TokensMade


class AskPixels(Struct, frozen=True):
    """The request cannot go on without the pixels of these images; it is to be submitted again with them and with what was
    made so far. Here it is forgotten."""

    request_id: str
    hashes: tuple[str, ...]


class RecordServingRefusal(Struct, frozen=True):
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
