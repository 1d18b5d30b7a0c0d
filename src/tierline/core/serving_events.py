"""What the serving scheduler is told: by clients, by instances and by whoever starts them. Past tense."""

from __future__ import annotations

from msgspec import Struct

from tierline.core.instance_actions import Tell
from tierline.core.request import Request, Role, TokenLogprob


class RequestSubmitted(Struct, frozen=True):
    """A client's request was accepted. `pixels`: content hashes of those of its images that can be encoded."""

    request: Request
    pixels: tuple[str, ...] = ()


class RequestAbandoned(Struct, frozen=True):
    """The client has gone, or has all it wanted."""

    request_id: str


class InstanceJoined(Struct, frozen=True):
    """An instance is ready."""

    name: str
    roles: Role


class InstanceLost(Struct, frozen=True):
    """An instance is gone with all that it had."""

    name: str
    reason: str


class InstanceSaid(Struct, frozen=True):
    """A word of an instance, with the log-probabilities of the tokens in it, if they were asked for."""

    name: str
    message: Tell
    logprobs: tuple[TokenLogprob, ...] = ()


class RolesAsked(Struct, frozen=True):
    """Somebody wants an instance to have these roles."""

    name: str
    roles: Role


class MoveWanted(Struct, frozen=True):
    """Somebody wants a request to go on at instance `to`."""

    request_id: str
    to: str


class Tick(Struct, frozen=True):
    """A period has passed (`ServingScheduler.tick_ns`; 0 = none is wanted): the groups, stages and those who wait are looked
    at. Whoever drives the scheduler posts it while there are instances or requests."""


ServingEvent = (
    RequestSubmitted | RequestAbandoned | InstanceJoined | InstanceLost | InstanceSaid | RolesAsked | MoveWanted | Tick
)
