"""What the serving scheduler knows of instances and requests."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tierline.core.instance_actions import TellStatus, TellTokens
from tierline.core.request import Request, Role, TokenLogprob
from tierline.core.routing_view import InstanceView


@dataclass(slots=True)
class Live:
    """A request that is not finished. Its current `attempt` is at `owner` (both "" = nowhere: no instance may do its next
    stage).

    `told`: output tokens the client knows. `prefilled`: the attempt is past its prompt. `held`: its owner may not decode,
    so it waits to be moved; `moving_to`: a move was asked for and has not ended. `early`: words of tokens that came before
    those of earlier ones, as they may when an attempt moves from one instance to another; `before`: instances that had the
    attempt, whose words may still come. `flights`: images under way for it, as (image, to).
    """

    request: Request
    pixels: frozenset[str]
    told: list[int]
    attempt: str = ""
    losses: int = 0  # of its attempts so many ended with an instance
    charged_tokens: int = 0  # what its owner's `prefill_tokens` counts for it
    owner: str = ""
    prefilled: bool = False
    held: bool = False
    moving_to: str = ""
    news: int = 0  # of `moving_to`, when it was asked
    refused_by: set[str] = field(default_factory=set)
    early: dict[int, tuple[TellTokens, tuple[TokenLogprob, ...]]] = field(default_factory=dict)
    before: set[str] = field(default_factory=set)
    flights: set[tuple[str, str]] = field(default_factory=set)

    @property
    def request_id(self) -> str:
        return self.request.request_id

    def begin_attempt(self, number: int, owner: str) -> Request:
        """The request as `owner` gets it. No two attempts of a scheduler have the same `number`."""
        self.attempt, self.owner = f"{self.request_id}#{number}", owner
        self.charged_tokens = len(self.request.prompt) + len(self.told)
        return replace(self.request, request_id=self.attempt, made=tuple(self.told))

    def end_attempt(self) -> None:
        self.attempt = self.owner = self.moving_to = ""
        self.prefilled = self.held = False
        self.refused_by.clear()
        self.early.clear()
        self.before.clear()


@dataclass(slots=True)
class Server:
    """An instance. `configured`: roles it was started or told to have; `roles` may be more while another is lost.
    `images`: whose embeddings it has. Counts change by `count` alone, roles and status by their methods: the view of it
    that routing policies get is kept until one of these changes."""

    name: str
    configured: Role
    roles: Role
    status: TellStatus | None = None
    prefill_tokens: int = 0
    decoding: int = 0
    encoding: int = 0
    images: set[str] = field(default_factory=set)
    news: int = 0  # how often it has told that it may have room
    switches: int = 0  # role changes that a batch has confirmed
    asked_ns: int = 0  # when roles were last asked for
    switch_ns: int = 0  # how long the last change took until its first batch
    _view: InstanceView | None = None

    def count(self, *, prefill_tokens: int = 0, decoding: int = 0, encoding: int = 0) -> None:
        self.prefill_tokens += prefill_tokens
        self.decoding += decoding
        self.encoding += encoding
        self._view = None

    def heard(self, status: TellStatus) -> None:
        self.status = status
        self._view = None

    def set_roles(self, roles: Role, now_ns: int) -> None:
        self.roles, self.asked_ns = roles, now_ns
        self._view = None

    def view(self) -> InstanceView:
        if self._view is None:
            status = self.status
            self._view = InstanceView(
                name=self.name,
                roles=self.roles,
                prefill_tokens=self.prefill_tokens,
                decoding=self.decoding,
                encoding=self.encoding,
                free_blocks=status.free_blocks if status else 0,
                total_blocks=status.total_blocks if status else 0,
            )
        return self._view
