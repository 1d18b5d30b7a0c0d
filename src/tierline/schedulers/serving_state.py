"""What the serving scheduler knows of instances and requests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tierline.core.instance_actions import TellStatus, TellTokens
from tierline.core.request import Request, Role, TokenLogprob
from tierline.core.routing_view import InstanceView


@dataclass(slots=True)
class Live:
    """A request that is not finished. Its current attempt is at `owner` ("" = nowhere: no instance may do its next stage).

    `told`: output tokens the client knows. `prefilled`: the attempt is past its prompt. `held`: it waits to be moved;
    `moving_to`: a move was asked for and has not ended. `early`: words of tokens that came before those of earlier ones, as
    they may when an attempt moves from one instance to another.
    """

    request: Request
    pixels: frozenset[str]
    told: list[int]
    attempts: int = 0
    losses: int = 0  # of its attempts so many ended with their instance
    charged_tokens: int = 0  # what its owner's `prefill_tokens` counts for it
    owner: str = ""
    prefilled: bool = False
    held: bool = False
    moving_to: str = ""
    refused_by: set[str] = field(default_factory=set)
    early: dict[int, tuple[TellTokens, tuple[TokenLogprob, ...]]] = field(default_factory=dict)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def attempt(self) -> str:
        return f"{self.request_id}#{self.attempts}"

    def next_attempt(self) -> Request:
        """The request as the next instance gets it."""
        self.attempts += 1
        self.owner, self.prefilled, self.held, self.moving_to = "", False, False, ""
        self.refused_by.clear()
        self.early.clear()
        return replace(self.request, request_id=self.attempt, made=tuple(self.told))


@dataclass(slots=True)
class Server:
    """An instance. `configured`: roles it was started or told to have; `roles` may be more while another is lost.
    `images`: whose embeddings it has."""

    name: str
    configured: Role
    roles: Role
    status: TellStatus | None = None
    prefill_tokens: int = 0
    decoding: int = 0
    encoding: int = 0
    images: set[str] = field(default_factory=set)
    switches: int = 0  # role changes that a batch has confirmed
    asked_ns: int = 0  # when roles were last asked for
    switch_ns: int = 0  # how long the last change took until its first batch

    def view(self) -> InstanceView:
        status = self.status
        return InstanceView(
            name=self.name,
            roles=self.roles,
            prefill_tokens=self.prefill_tokens,
            decoding=self.decoding,
            encoding=self.encoding,
            free_blocks=status.free_blocks if status else 0,
            total_blocks=status.total_blocks if status else 0,
        )
