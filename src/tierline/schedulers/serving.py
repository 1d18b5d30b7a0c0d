"""The scheduler of the serving tier: which instance does which stage of which request. A state machine without I/O.

A request goes encode -> prefill -> decode; each stage is done by an instance that has the role, and two stages in one place
need no transfer. A request is at one instance at any moment, by an *attempt* whose id changes whenever it begins anew; words
about other attempts change nothing. Of what an instance loses, everything the client knows is kept here, so another
instance computes it again and goes on with the next token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice

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
from tierline.schedulers.serving_fleet import Fleet
from tierline.schedulers.serving_images import ImageDispatch
from tierline.schedulers.serving_state import Live, Server

MAX_LOSSES = 5  # a request that was on so many instances when they died may be what kills them
TRIES = 8  # so many of those that wait to be moved are sent to an instance that has told of its load


class ServingScheduler:
    """At most `queue_limit` requests are live at a time; more are turned away (`check`)."""

    def __init__(self, routing: RoutingPolicy, queue_limit: int = 4096) -> None:
        self._queue_limit = queue_limit
        self._out: list[ServingAction] = []
        self._live: dict[str, Live] = {}
        self._homeless: dict[str, Live] = {}  # requests whose next stage no instance may do
        self._held: dict[str, Live] = {}  # those that wait to be moved and are not under way
        self._fleet = Fleet(routing, self._out)
        self._images = ImageDispatch(self._fleet, self._live)
        self._attempts = 0
        self.counts: Counter[str] = Counter()

    # --- questions

    @property
    def live(self) -> int:
        return len(self._live)

    @property
    def servers(self) -> dict[str, Server]:
        """Instances by name, in order of joining. To be read only."""
        return self._fleet.servers

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
        more = sum(isinstance(event, RequestSubmitted) for event in events)
        if more and len(self._live) + more > self._queue_limit:
            raise Overloaded(f"{len(self._live)} requests are being served or wait; {self._queue_limit} are allowed.")

    # --- events

    def handle(self, now_ns: int, event: Event) -> list[ServingAction]:
        """What is to be done now that `event` has happened, in this order."""
        match event:
            case RequestSubmitted():
                live = Live(event.request, frozenset(event.pixels), list(event.request.made))
                self._live[live.request_id] = live
                self._dispatch(live, "new")
            case RequestAbandoned():
                if gone := self._live.get(event.request_id):
                    self._call_off(gone)
                    self._forget(gone)
            case InstanceJoined():
                self._joined(event, now_ns)
            case InstanceLost():
                if self._fleet.lose(event.name):
                    self._lost(event.name, now_ns)
            case InstanceSaid():
                if server := self._fleet.servers.get(event.name):
                    self._said(now_ns, server, event.message, event.logprobs)
            case RolesAsked():
                self._roles_asked(now_ns, event)
            case MoveWanted():
                self._move_wanted(event)
            case _:
                raise AssertionError(f"{type(event).__name__} is not for the serving scheduler")
        out = self._out[:]
        self._out.clear()
        return out

    def _said(self, now_ns: int, server: Server, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        match message:
            case TellTokens():
                self._tokens(server, message, logprobs)
            case TellPrefilled():
                if live := self._current(server, message.request_id):
                    self._prefilled(server, live)
            case TellImagesNeeded():
                if live := self._current(server, message.request_id):
                    actions, _, lacking = self._images.needed(live, server.name, message.hashes)
                    if lacking:
                        self._ask_pixels(live, lacking)
                    else:
                        self._out += actions
            case TellReturned():
                if live := self._current(server, message.request_id):
                    self._leave(live)
                    self._dispatch(live, f"{server.name} gave it back: {message.reason}")
            case TellMoved():
                self._moved(server, message)
            case TellMoveFailed():
                if live := self._current(server, message.request_id):
                    self._move_failed(live, message.to)
            case TellEmbeddings():
                self._images.stored(server, message)
            case TellRoles():
                if message.by_batch:
                    server.switches += 1
                    server.switch_ns = now_ns - server.asked_ns
            case TellStatus():
                server.heard(message)
                if message.free_blocks:
                    self._has_room(server)

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
        images = live.request.images
        waits = images and not self._fleet.able(Role.ENCODE)
        server = None if waits else self._fleet.choose(Role.PREFILL, live.request)
        if server is None:
            self._homeless[live.request_id] = live
            return
        self._attempts += 1
        attempt = live.begin_attempt(self._attempts, server.name)
        server.count(prefill_tokens=live.charged_tokens)
        hashes = dict.fromkeys(image.content_hash for image in images)
        actions, expected, lacking = self._images.dispatch(live, server.name, hashes)
        if lacking:
            self._leave(live)
            self._ask_pixels(live, lacking)
            return
        self.counts["dispatched"] += 1
        self._out.append(QueueAttempt(server.name, attempt, expected, reason))
        self._out += actions

    def _ask_pixels(self, live: Live, lacking: tuple[str, ...]) -> None:
        self._call_off(live)
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
            self._not_held(live)  # it goes on there
        live.early[message.first] = (message, logprobs)
        while len(live.told) in live.early:
            if self._tell(server, live, *live.early.pop(len(live.told))):
                return
        self._mend_gap(live)

    def _tell(self, server: Server, live: Live, message: TellTokens, logprobs: tuple[TokenLogprob, ...]) -> bool:
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
            self._has_room(server)
        return message.finish is not None

    def _mend_gap(self, live: Live) -> None:
        """Tokens are missing that an instance made before the attempt moved on. If it is lost, so are they."""
        if live.early and not all(name in self._fleet.servers for name in live.before):
            self._begin_anew(live, "words of an instance that was lost are missing")

    def _begin_anew(self, live: Live, reason: str) -> None:
        """An instance was lost that the attempt needed."""
        self._call_off(live)
        live.losses += 1
        if live.losses < MAX_LOSSES:
            self._leave(live)
            self._dispatch(live, reason)
            return
        told = f"{live.losses} instances were lost while they worked on it"
        self._out.append(Answer(TokensMade(live.request_id, len(live.told), (), finish="error", reason=told)))
        self._forget(live)

    def _past_prompt(self, server: Server, live: Live) -> None:
        if not live.prefilled:
            live.prefilled = True
            server.count(prefill_tokens=-live.charged_tokens, decoding=1)
            self._images.release(live)

    def _call_off(self, live: Live) -> None:
        for name in (live.owner, live.moving_to):
            if name in self._fleet.servers:
                self._out.append(CancelAttempt(name, live.attempt))

    def _leave(self, live: Live) -> None:
        """The attempt is over, at its owner and on its way."""
        if server := self._fleet.servers.get(live.owner):
            if live.prefilled:
                server.count(decoding=-1)
            else:
                server.count(prefill_tokens=-live.charged_tokens)
        if target := self._fleet.servers.get(live.moving_to):
            target.count(decoding=-1)
        self._not_held(live)
        self._images.release(live)
        live.end_attempt()

    def _forget(self, live: Live) -> None:
        self._leave(live)
        self._homeless.pop(live.request_id, None)
        del self._live[live.request_id]

    # --- moves

    def _prefilled(self, server: Server, live: Live) -> None:
        """Its owner says that it may not decode it, so it waits to be moved."""
        self._past_prompt(server, live)
        live.held = True
        if live.moving_to:  # asked again: a preemption ends a move in silence; one that goes on is not changed by it
            self._out.append(MoveAttempt(live.owner, live.attempt, live.moving_to, "its prompt is done"))
        else:
            self._find_decoder(live)

    def _not_held(self, live: Live) -> None:
        live.held = False
        self._held.pop(live.request_id, None)

    def _find_decoder(self, live: Live) -> None:
        """Move one that is held, unless its owner may decode by now: it will go on there as soon as that hears of it."""
        if Role.DECODE in self._fleet.servers[live.owner].roles:
            self._not_held(live)
            return
        server = self._fleet.choose(Role.DECODE, live.request, apart_from=live.refused_by | {live.owner})
        if server is None:
            live.refused_by.clear()
            self._held[live.request_id] = live
        else:
            self._move(live, server, "its prompt is done")

    def _has_room(self, server: Server) -> None:
        """An instance has told of its load, or of an end: some of those that no instance would take are sent there."""
        server.news += 1
        if not self._held or Role.DECODE not in server.roles:
            return
        for live in list(islice(self._held.values(), TRIES)):
            if live.owner != server.name:
                self._move(live, server, "it may have room again")

    def _move(self, live: Live, to: Server, reason: str) -> None:
        self._held.pop(live.request_id, None)
        live.moving_to, live.news = to.name, to.news
        to.count(decoding=1)
        self._out.append(MoveAttempt(live.owner, live.attempt, to.name, reason))

    def _move_failed(self, live: Live, to: str) -> None:
        self.counts["moves_failed"] += 1
        if live.moving_to != to:
            return
        target = self._fleet.servers[to]
        target.count(decoding=-1)
        live.moving_to = ""
        if target.news == live.news:  # else it has told of room since, and may take it now
            live.refused_by.add(to)
        if live.held:
            self._find_decoder(live)

    def _moved(self, server: Server, message: TellMoved) -> None:
        live = self._live.get(message.request_id.rpartition("#")[0])
        if live is None or live.attempt != message.request_id or live.moving_to != server.name:
            self._out.append(CancelAttempt(server.name, message.request_id))
            return
        self._fleet.servers[live.owner].count(decoding=-1)
        live.before.add(live.owner)
        live.owner, live.moving_to, live.held = server.name, "", False
        live.refused_by.clear()
        self.counts["moves"] += 1

    def _move_wanted(self, event: MoveWanted) -> None:
        live, to = self._live.get(event.request_id), self._fleet.servers.get(event.to)
        reason = ""
        if live is None or to is None:
            reason = "there is no such request or instance"
        elif not live.prefilled or live.moving_to or live.owner == to.name:
            reason = "its prompt is not done, it is being moved, or it is there already"
        elif Role.DECODE not in to.roles:
            reason = f"{to.name} may not decode"
        else:
            self._move(live, to, "asked for")
            return
        self._out.append(RecordServingRefusal(event.request_id, reason))

    # --- instances

    def _retry(self) -> None:
        """Instances may do other stages than before: those that wait for one may find it."""
        for live in list(self._homeless.values()):
            del self._homeless[live.request_id]
            self._dispatch(live, "an instance may do its next stage")
        for live in list(self._held.values()):
            self._find_decoder(live)

    def _joined(self, event: InstanceJoined, now_ns: int) -> None:
        self._fleet.join(event.name, event.roles)
        self._fleet.give_back_stages(now_ns)
        if self.counts["instances_lost"]:  # at the start nobody need stand in for those to come
            self._fleet.take_over_stages(now_ns)
        self._retry()

    def _lost(self, name: str, now_ns: int) -> None:
        self.counts["instances_lost"] += 1
        self._out += [NotifyLost(other, name) for other in self._fleet.servers]
        self._fleet.take_over_stages(now_ns)
        actions, lacking = self._images.instance_lost(name)
        self._out += actions
        for request_id, hashes in lacking.items():
            self._ask_pixels(self._live[request_id], hashes)
        for live in list(self._live.values()):
            if live.owner == name:
                self._begin_anew(live, f"{name} was lost")
            elif live.moving_to == name:
                # It may have taken the attempt over already, and its word of that died with it.
                self._begin_anew(live, f"{name} was lost while the request moved there")
            elif name in live.before:
                self._mend_gap(live)
        self._retry()

    def _roles_asked(self, now_ns: int, event: RolesAsked) -> None:
        server = self._fleet.servers.get(event.name)
        if server is None:
            self._out.append(RecordServingRefusal(event.name, "there is no such instance"))
            return
        if missing := self._fleet.lacks_without(server, event.roles):
            self._out.append(RecordServingRefusal(event.name, f"nobody else may do {missing.letters}"))
            return
        server.configured = event.roles
        self._fleet.set_roles(server, event.roles, "asked for", now_ns)
        self._fleet.give_back_stages(now_ns)
        self._retry()
