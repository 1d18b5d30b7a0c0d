"""The scheduler of the serving tier: which instance does which stage of which request. A state machine without I/O.

A request goes encode -> prefill -> decode; each stage is done by an instance that has the role, and two stages in one place
need no transfer. A request is at one instance at any moment, by an *attempt* whose id changes whenever it begins anew; words
about other attempts change nothing. Of what an instance loses, everything the client knows is kept here, so another
instance computes it again and goes on with the next token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from tierline.core.errors import Overloaded
from tierline.core.events import Event
from tierline.core.instance_actions import (
    Tell,
    TellEmbeddings,
    TellImagesNeeded,
    TellMoved,
    TellMoveFailed,
    TellPrefilled,
    TellReturned,
    TellRoles,
    TellStatus,
    TellTokens,
)
from tierline.core.request import Role, TokenLogprob, TokensMade
from tierline.core.routing_view import RoutingPolicy
from tierline.core.serving_actions import (
    Answer,
    AskPixels,
    CancelAttempt,
    MoveAttempt,
    NotifyLost,
    QueueAttempt,
    RecordServingRefusal,
    ServingAction,
    SetRoles,
)
from tierline.core.serving_events import (
    InstanceJoined,
    InstanceLost,
    InstanceSaid,
    MoveWanted,
    RequestAbandoned,
    RequestSubmitted,
    RolesAsked,
)
from tierline.schedulers.serving_images import ImageDispatch
from tierline.schedulers.serving_state import Live, Server

MAX_LOSSES = 5  # a request that was on so many instances when they died may be what kills them


class ServingScheduler:
    """At most `queue_limit` requests are live at a time; more are turned away (`check`)."""

    def __init__(self, routing: RoutingPolicy, queue_limit: int = 4096) -> None:
        self._routing = routing
        self._queue_limit = queue_limit
        self._servers: dict[str, Server] = {}
        self._live: dict[str, Live] = {}
        self._homeless: dict[str, Live] = {}  # requests whose next stage no instance may do
        self._held: dict[str, Live] = {}  # those that wait to be moved and are not under way
        self._images = ImageDispatch(self._servers, self._live, routing)
        self._out: list[ServingAction] = []
        self.counts: Counter[str] = Counter()

    # --- questions

    @property
    def live(self) -> int:
        return len(self._live)

    @property
    def servers(self) -> dict[str, Server]:
        """Instances by name, in order of joining. To be read only."""
        return self._servers

    def live_request(self, request_id: str) -> Live | None:
        return self._live.get(request_id)

    @property
    def image_queries(self) -> int:
        """Images of dispatched requests that were looked up."""
        return self._images.queries

    @property
    def image_hits(self) -> int:
        """Those of them that some instance had, or was about to have."""
        return self._images.hits

    def has_embeddings(self, content_hash: str) -> bool:
        """Whether some instance has the embeddings of this image, or will have them soon."""
        return self._images.is_known(content_hash)

    def check(self, events: Sequence[Event]) -> None:
        """Raises `Overloaded` where a client's request is one too many."""
        for event in events:
            if isinstance(event, RequestSubmitted) and len(self._live) >= self._queue_limit:
                raise Overloaded(
                    f"{len(self._live)} requests are being served or wait; {self._queue_limit} are allowed."
                )

    # --- events

    def handle(self, now_ns: int, event: Event) -> list[ServingAction]:
        """What is to be done now that `event` has happened, in this order."""
        match event:
            case RequestSubmitted():
                live = Live(event.request, frozenset(event.pixels), list(event.request.made))
                self._live[live.request_id] = live
                self._dispatch(live, "new")
            case RequestAbandoned():
                self._abandon(event.request_id)
            case InstanceJoined():
                self._servers[event.name] = Server(event.name, event.roles, event.roles)
                self._give_back_stages(now_ns)
                self._retry()
            case InstanceLost():
                self._lost(event.name, now_ns)
            case InstanceSaid():
                if event.name in self._servers:
                    self._said(now_ns, self._servers[event.name], event.message, event.logprobs)
            case RolesAsked():
                self._roles_asked(now_ns, event)
            case MoveWanted():
                self._move_wanted(event)
            case _:
                raise AssertionError(f"{type(event).__name__} is not for the serving scheduler")
        out, self._out = self._out, []
        return out

    def _said(self, now_ns: int, server: Server, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        match message:
            case TellTokens():
                self._tokens(server, message, logprobs)
            case TellPrefilled():
                if live := self._current(server, message.request_id):
                    self._past_prompt(server, live)
                    live.held = True
                    if not live.moving_to:
                        self._find_decoder(live)
            case TellImagesNeeded():
                if live := self._current(server, message.request_id):
                    self._images.forget(server.name, message.hashes)
                    self._encode(live, server.name, message.hashes)
            case TellReturned():
                if live := self._current(server, message.request_id):
                    self._leave(live)
                    self._dispatch(live, f"{server.name} gave it back: {message.reason}")
            case TellMoved():
                self._moved(server, message)
            case TellMoveFailed():
                if live := self._current(server, message.request_id):
                    self.counts["moves_failed"] += 1
                    self._undo_move(live, message.to)
            case TellEmbeddings():
                self._images.stored(server, message)
            case TellRoles():
                if message.by_batch:
                    server.switches += 1
                    server.switch_ns = now_ns - server.asked_ns
            case TellStatus():
                server.status = message
                self._retry()

    # --- requests

    def _current(self, server: Server, attempt: str) -> Live | None:
        """The live request whose current attempt is this one at this server; an attempt that is over is called off."""
        live = self._live.get(attempt.rpartition("#")[0])
        if live is None or live.attempt != attempt:
            self._out.append(CancelAttempt(server.name, attempt))
            return None
        return live if live.owner == server.name else None

    def _dispatch(self, live: Live, reason: str) -> None:
        """Send a request to prefill somewhere, its images first to encoders."""
        server = self._choose(Role.PREFILL, live)
        if server is None:
            self._homeless[live.request_id] = live
            return
        attempt = live.next_attempt()
        live.owner = server.name
        live.charged_tokens = len(attempt.prompt) + len(attempt.made)
        server.prefill_tokens += live.charged_tokens
        hashes = tuple(dict.fromkeys(image.content_hash for image in live.request.images))
        actions, expected, lacking = self._images.dispatch(live, server.name, hashes)
        if lacking:
            self._ask_pixels(live, lacking)
            return
        self.counts["dispatched"] += 1
        self._out.append(QueueAttempt(server.name, attempt, expected, reason))
        self._out += actions

    def _encode(self, live: Live, to: str, hashes: tuple[str, ...]) -> None:
        actions, _, lacking = self._images.dispatch(live, to, hashes)
        if lacking:
            self._out.append(CancelAttempt(live.owner, live.attempt))
            self._ask_pixels(live, lacking)
        else:
            self._out += actions

    def _ask_pixels(self, live: Live, lacking: tuple[str, ...]) -> None:
        self._forget(live)
        self._out.append(AskPixels(live.request_id, lacking))

    def _tokens(self, server: Server, message: TellTokens, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Tokens of a moving attempt come from two instances; they are told in the order of their places."""
        live = self._live.get(message.request_id.rpartition("#")[0])
        if live is None or live.attempt != message.request_id:
            if not message.finish:
                self._out.append(CancelAttempt(server.name, message.request_id))
            return
        if live.owner == server.name and message.tokens:
            self._past_prompt(server, live)
        live.early[message.first] = (message, logprobs)
        while len(live.told) in live.early:
            if self._tell(live, *live.early.pop(len(live.told))):
                break

    def _tell(self, live: Live, message: TellTokens, logprobs: tuple[TokenLogprob, ...]) -> bool:
        """Tell the client; whether that was the end."""
        live.told += message.tokens
        made = TokensMade(
            request_id=live.request_id,
            first=message.first,
            tokens=message.tokens,
            logprobs=logprobs,
            finish=message.finish,
            cached_tokens=message.cached_tokens,
            reason=message.reason,
        )
        self._out.append(Answer(made))
        if message.finish:
            self._forget(live)
            self._retry()
        return message.finish is not None

    def _past_prompt(self, server: Server, live: Live) -> None:
        if not live.prefilled:
            live.prefilled = True
            server.prefill_tokens -= live.charged_tokens
            server.decoding += 1

    def _leave(self, live: Live) -> None:
        """The attempt is no longer at its owner, nor on its way."""
        server = self._servers.get(live.owner)
        if server is not None:
            if live.prefilled:
                server.decoding -= 1
            else:
                server.prefill_tokens -= live.charged_tokens
        target = self._servers.get(live.moving_to)
        if target is not None:
            target.decoding -= 1
        live.owner = live.moving_to = ""
        live.held = False
        self._held.pop(live.request_id, None)

    def _forget(self, live: Live) -> None:
        self._leave(live)
        self._homeless.pop(live.request_id, None)
        self._images.request_over(live)
        del self._live[live.request_id]

    def _abandon(self, request_id: str) -> None:
        live = self._live.get(request_id)
        if live is None:
            return
        if live.owner:
            self._out.append(CancelAttempt(live.owner, live.attempt))
        if live.moving_to:
            self._out.append(CancelAttempt(live.moving_to, live.attempt))
        self._forget(live)

    # --- moves

    def _find_decoder(self, live: Live) -> None:
        server = self._choose(Role.DECODE, live, apart_from=live.refused_by | {live.owner})
        if server is None:
            live.refused_by.clear()
            self._held[live.request_id] = live
        else:
            self._move(live, server, "its prompt is done")

    def _move(self, live: Live, to: Server, reason: str) -> None:
        self._held.pop(live.request_id, None)
        live.moving_to = to.name
        to.decoding += 1
        self._out.append(MoveAttempt(live.owner, live.attempt, to.name, reason))

    def _undo_move(self, live: Live, to: str) -> None:
        if live.moving_to != to:
            return
        if to in self._servers:
            self._servers[to].decoding -= 1
        live.moving_to = ""
        live.refused_by.add(to)
        if live.held:
            self._find_decoder(live)

    def _moved(self, server: Server, message: TellMoved) -> None:
        live = self._live.get(message.request_id.rpartition("#")[0])
        if live is None or live.attempt != message.request_id or live.moving_to != server.name:
            self._out.append(CancelAttempt(server.name, message.request_id))
            return
        source = self._servers.get(live.owner)
        if source is not None:
            source.decoding -= 1
        live.owner, live.moving_to, live.held = server.name, "", False
        live.refused_by.clear()
        self.counts["moves"] += 1

    def _move_wanted(self, event: MoveWanted) -> None:
        live, to = self._live.get(event.request_id), self._servers.get(event.to)
        reason = ""
        if live is None or to is None:
            reason = "there is no such request or instance"
        elif not live.prefilled or live.moving_to or live.owner == to.name:
            reason = "its prompt is not done, it is being moved, or it is there already"
        elif Role.DECODE not in to.roles:
            reason = f"{to.name} may not decode"
        if reason:
            self._out.append(RecordServingRefusal(event.request_id, reason))
        elif live is not None and to is not None:
            self._move(live, to, "asked for")

    def _retry(self) -> None:
        """Something has changed: those that wait for an instance may find one."""
        for live in list(self._homeless.values()):
            if self._choose(Role.PREFILL, live) is None:
                break
            del self._homeless[live.request_id]
            self._dispatch(live, "an instance may prefill again")
        for live in list(self._held.values()):
            if self._choose(Role.DECODE, live, apart_from=live.refused_by | {live.owner}) is not None:
                self._find_decoder(live)

    # --- instances

    def _choose(self, role: Role, live: Live, apart_from: set[str] | None = None) -> Server | None:
        able = [
            server
            for server in self._servers.values()
            if role in server.roles and server.name not in (apart_from or ())
        ]
        if not able:
            return None
        if len(able) == 1:
            return able[0]
        return self._servers[self._routing.choose(role, tuple(server.view() for server in able), live.request)]

    def _lost(self, name: str, now_ns: int) -> None:
        if self._servers.pop(name, None) is None:
            return
        self.counts["instances_lost"] += 1
        self._out += [NotifyLost(other, name) for other in self._servers]
        self._take_over_stages(now_ns)
        for live in list(self._live.values()):
            if live.owner == name:
                target = live.moving_to
                self._leave(live)
                if target:
                    self._out.append(CancelAttempt(target, live.attempt))
                live.losses += 1
                if live.losses >= MAX_LOSSES:
                    reason = f"{live.losses} instances were lost while they worked on it"
                    self._out.append(
                        Answer(TokensMade(live.request_id, len(live.told), (), finish="error", reason=reason))
                    )
                    self._forget(live)
                else:
                    self._dispatch(live, f"{name} was lost")
            elif live.moving_to == name:
                # It may have taken the attempt over already, and its word of that died with it.
                self._out.append(CancelAttempt(live.owner, live.attempt))
                self._leave(live)
                self._dispatch(live, f"{name} was lost while the request moved there")
        actions, lacking = self._images.instance_lost(name)
        self._out += actions
        for request_id, hashes in lacking.items():
            if live_again := self._live.get(request_id):
                self._out.append(CancelAttempt(live_again.owner, live_again.attempt))
                self._ask_pixels(live_again, hashes)

    def _roles_asked(self, now_ns: int, event: RolesAsked) -> None:
        server = self._servers.get(event.name)
        if server is None:
            self._out.append(RecordServingRefusal(event.name, "there is no such instance"))
            return
        others = Role(0)
        for other in self._servers.values():
            if other is not server:
                others |= other.roles
        missing = ~(others | event.roles) & (Role.ENCODE | Role.PREFILL | Role.DECODE)
        if missing:
            self._out.append(RecordServingRefusal(event.name, f"nobody else may do {missing.letters}"))
            return
        server.configured = event.roles
        self._set_roles(server, event.roles, "asked for", now_ns)
        self._retry()

    def _set_roles(self, server: Server, roles: Role, reason: str, now_ns: int) -> None:
        if server.roles != roles:
            server.roles = roles
            server.asked_ns = now_ns
            self._out.append(SetRoles(server.name, roles, reason))

    def _take_over_stages(self, now_ns: int) -> None:
        """An instance is lost: every stage is still done by somebody."""
        for role in (Role.ENCODE, Role.PREFILL, Role.DECODE):
            if self._servers and not any(role in server.roles for server in self._servers.values()):
                server = min(self._servers.values(), key=lambda each: (each.prefill_tokens, each.decoding))
                self._set_roles(server, server.roles | role, f"no other instance may do {role.letters}", now_ns)

    def _give_back_stages(self, now_ns: int) -> None:
        """An instance has joined: what others took over and it may do is its own again."""
        for role in (Role.ENCODE, Role.PREFILL, Role.DECODE):
            if any(role in server.configured for server in self._servers.values()):
                for server in self._servers.values():
                    if role in server.roles and role not in server.configured:
                        self._set_roles(server, server.roles & ~role, "the stage has its own instance again", now_ns)
