"""What the serving scheduler knows of instances and requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from msgspec import structs

from tierline.core.instance_actions import TellStatus, TellTokens
from tierline.core.request import ALL_ROLES, Request, Role, TokenLogprob, TokensMade
from tierline.core.routing_view import Group, InstanceView, Modality, RequestView
from tierline.perf.serving_demand import StageRates

NOTHING: Mapping[str, int] = {}

ServerState = Literal["awake", "leaving", "ending", "drowsy", "falling", "asleep", "waking"]
"""`leaving` and `drowsy`: it ends, or sleeps, when it has nothing to do any more; `ending` and `falling`: it was told to;
`asleep`: it has said that it does; `waking`: it was told to, and no batch of it has run."""


@dataclass(slots=True)
class Live:
    """A request that is not finished. Its current `attempt` is at `owner` (both "" = nowhere: no instance may do its next
    stage, or it waits for one that has room).

    `told`: output tokens the client knows. `prefilled`: the attempt is past its prompt. `held`: its owner may not decode,
    so it waits to be moved; `moving_to`: a move was asked for and has not ended. `early`: words of tokens that came before
    those of earlier ones, as they may when an attempt moves from one instance to another; `before`: instances that had the
    attempt, whose words may still come; `kept`: its first token, of which the client is not told yet. `flights`: images
    under way for it, as (image, to). `prefill_s`, `encode_s`: predicted when it came; `prefix_keys`: of its prompt's blocks,
    in the prefix index.
    """

    request: Request
    pixels: frozenset[str]
    told: list[int]
    submitted_ns: int = 0
    deadline_ns: int = 0
    prefill_s: float = 0.0
    encode_s: float = 0.0
    attempt: str = ""
    losses: int = 0  # of its attempts so many ended with an instance
    charged_tokens: int = 0  # what its owner's `prefill_tokens` counts for it
    owner: str = ""
    prefilled: bool = False
    held: bool = False
    moving_to: str = ""
    news: int = 0  # of `moving_to`, when it was asked
    barred: bool = False  # counted among those of its owner whose images are under way
    first_ns: int = 0  # when its first token was told
    image_tokens: int = 0
    prefix_keys: tuple[int, ...] | None = None
    refused_by: set[str] = field(default_factory=set)
    early: dict[int, tuple[TellTokens, tuple[TokenLogprob, ...]]] = field(default_factory=dict)
    before: set[str] = field(default_factory=set)
    kept: TokensMade | None = None
    flights: dict[tuple[str, str], None] = field(default_factory=dict)  # in order, so that a replay goes the same way
    request_id: str = field(init=False)
    modality: Modality = field(init=False)

    def __post_init__(self) -> None:
        self.request_id = self.request.request_id
        self.modality = "multimodal" if self.request.images else "text"

    @property
    def positions(self) -> int:
        """Prompt and output so far."""
        return len(self.request.prompt) + len(self.told)

    def predict(self, rates: StageRates) -> None:
        """Device seconds of its prompt and of its images, each picture once."""
        self.prefill_s = rates.prefill_s(self.positions)
        if images := self.request.images:
            tokens = {image.content_hash: image.tokens for image in images}
            self.encode_s = sum([rates.image_s(each) for each in tokens.values()])
            self.image_tokens = sum([image.tokens for image in images])

    def view(self, cached: Mapping[str, int] = NOTHING, embedded: Mapping[str, int] = NOTHING) -> RequestView:
        return RequestView(
            self.request_id,
            self.submitted_ns,
            self.request.priority,
            self.positions,
            self.image_tokens,
            len(self.request.images),
            len(self.told),
            self.deadline_ns,
            self.prefill_s,
            self.encode_s,
            self.owner,
            cached,
            embedded,
        )

    def begin_attempt(self, number: int, owner: str) -> Request:
        """The request as `owner` gets it. No two attempts of a scheduler have the same `number`."""
        self.attempt, self.owner = f"{self.request_id}#{number}", owner
        self.charged_tokens = self.positions
        return structs.replace(self.request, request_id=self.attempt, made=tuple(self.told))

    def end_attempt(self) -> None:
        self.attempt = self.owner = self.moving_to = ""
        self.prefilled = self.held = self.barred = False
        self.refused_by.clear()
        self.early.clear()
        self.before.clear()


@dataclass(slots=True)
class Server:
    """An instance. `configured`: roles it was started or told to have; `roles` may be more while another is lost.
    `images`: whose embeddings it has. `prompts` and `decodes` are the requests there by id, `decodes` also those under way
    there. All that a view shows changes by methods alone: the view that routing policies get is kept until one of these is
    called. Of the positions that decode there it knows those at that time, for a view a token would be too many."""

    name: str
    configured: Role
    roles: Role
    rates: StageRates
    group: Group = "shared"
    status: TellStatus | None = None
    prompts: dict[str, Live] = field(default_factory=dict)
    decodes: dict[str, Live] = field(default_factory=dict)
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    encoding: int = 0
    encode_s: float = 0.0
    context_tokens: int = 0
    barred: int = 0
    barred_tokens: int = 0
    barred_s: float = 0.0
    texts: int = 0
    texts_s: float = 0.0
    images: set[str] = field(default_factory=set)
    news: int = 0  # how often it has told that it may have room
    switches: int = 0  # role changes that a batch has confirmed
    asked_ns: int = 0  # when roles were last asked for
    switch_ns: int = 0  # how long the last change took until its first batch
    changed_ns: int | None = None  # when its roles, or a group that binds it, were last changed
    regrouped_ns: int | None = None  # when its group was last changed
    state: ServerState = "awake"
    since_ns: int = 0  # when that began
    resume: Role = ALL_ROLES  # while it is not awake: what it was configured to do
    wake_ns: int = 0  # how long the last waking took until its first batch
    reason: str = ""  # of its last change
    known_view: InstanceView | None = None  # until something in it changes

    @property
    def decoding(self) -> int:
        return len(self.decodes)

    @property
    def is_up(self) -> bool:
        """It may do what its roles say."""
        return self.state in ("awake", "leaving", "drowsy")

    @property
    def sleeps(self) -> bool:
        """Or will when it has nothing to do any more."""
        return self.state in ("drowsy", "falling", "asleep")

    def enter(self, state: ServerState, now_ns: int) -> None:
        self.state, self.since_ns = state, now_ns

    def take_prompt(self, live: Live) -> None:
        self.prompts[live.request_id] = live
        self.prefill_tokens += live.charged_tokens
        self.prefill_s += live.prefill_s
        if not live.request.images:
            self.texts += 1
            self.texts_s += live.prefill_s
        self.known_view = None

    def drop_prompt(self, live: Live) -> None:
        self.bar(live, False)
        del self.prompts[live.request_id]
        self.prefill_tokens -= live.charged_tokens
        # Of sums of floats that come and go something would be left; an empty queue is empty.
        self.prefill_s = self.prefill_s - live.prefill_s if self.prompts else 0.0
        if not live.request.images:
            self.texts -= 1
            self.texts_s = self.texts_s - live.prefill_s if self.texts else 0.0
        self.known_view = None

    def bar(self, live: Live, barred: bool) -> None:
        """Images of a prompt there are under way, or no longer."""
        if live.barred is barred or live.request_id not in self.prompts:
            return
        live.barred, sign = barred, 1 if barred else -1
        self.barred += sign
        self.barred_tokens += sign * live.charged_tokens
        self.barred_s = self.barred_s + sign * live.prefill_s if self.barred else 0.0
        self.known_view = None

    def take_decode(self, live: Live) -> None:
        self.decodes[live.request_id] = live
        self.context_tokens += live.positions
        self.known_view = None

    def drop_decode(self, live: Live) -> None:
        del self.decodes[live.request_id]
        self.context_tokens = max(0, self.context_tokens - live.positions) if self.decodes else 0
        self.known_view = None

    def count_encode(self, images: int, seconds: float) -> None:
        self.encoding += images
        self.encode_s = max(0.0, self.encode_s + seconds) if self.encoding else 0.0
        self.known_view = None

    def more_context(self, tokens: int) -> None:
        """Sequences that decode there got longer; a view learns of it when it is made next."""
        self.context_tokens += tokens

    def heard(self, status: TellStatus) -> None:
        self.status = status
        self.known_view = None

    def renew(self, rates: StageRates) -> None:
        self.rates = rates
        self.known_view = None

    def set_roles(self, roles: Role, now_ns: int) -> None:
        self.roles, self.asked_ns = roles, now_ns
        self.known_view = None

    def set_group(self, group: Group) -> None:
        self.group = group
        self.known_view = None

    def view(self) -> InstanceView:
        if self.known_view is None:
            status = self.status
            self.known_view = InstanceView(
                self.name,
                self.roles,
                self.prefill_tokens,
                len(self.decodes),
                self.encoding,
                status.free_blocks if status else 0,
                status.total_blocks if status else 0,
                self.group,
                len(self.prompts),
                self.prefill_s,
                self.encode_s,
                self.context_tokens,
                self.rates.decode_s(len(self.decodes), self.context_tokens),
                self.barred,
                self.barred_tokens,
                self.barred_s,
                self.texts,
                self.texts_s,
            )
        return self.known_view
