"""The scheduler of the serving tier: which instance does which stage of which request. A state machine without I/O.

A request goes encode -> prefill -> decode; each stage is done by an instance that has the role, and two stages in one place
need no transfer. A request is at one instance at any moment, by an *attempt* whose id changes whenever it begins anew; words
about other attempts change nothing. Of what an instance loses, everything the client knows is kept here, so another
instance computes it again and goes on with the next token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import islice

from tierline.core.errors import Overloaded
from tierline.core.events import Event
from tierline.core.fleet_view import MoveRequest
from tierline.core.instance_actions import (
    Tell,
    TellAsleep,
    TellAwake,
    TellEmbeddings,
    TellImagesNeeded,
    TellMoved,
    TellMoveFailed,
    TellPrefilled,
    TellReturned,
    TellRoles,
    TellStatus,
    TellTimes,
    TellTokens,
)
from tierline.core.request import Role, TokenLogprob, TokensMade
from tierline.core.routing_view import Group, Modality, RoutingPolicy
from tierline.core.serving_actions import (
    Answer,
    AskPixels,
    CancelAttempt,
    MoveAttempt,
    NotifyLost,
    QueueAttempt,
    RecordServingRefusal,
    ServingAction,
    SleepInstance,
    StopInstance,
)
from tierline.core.serving_events import (
    InstanceJoined,
    InstanceLost,
    InstanceSaid,
    MoveWanted,
    RequestAbandoned,
    RequestSubmitted,
    RolesAsked,
    Tick,
)
from tierline.core.slo import Slo
from tierline.core.stage_times import StageTimes
from tierline.perf.fitted_rates import ToldRates
from tierline.perf.serving_demand import StageRates, UsesRates
from tierline.schedulers.serving_elastic import NOT_AWAKE, Decision, Elastic, Elasticity
from tierline.schedulers.serving_fleet import Fleet
from tierline.schedulers.serving_images import ImageDispatch
from tierline.schedulers.serving_queue import WaitingLine
from tierline.schedulers.serving_state import Live, Server

MAX_LOSSES = 5  # a request that was on so many instances when they died may be what kills them
TICK_NS = 100_000_000  # for policies that have requests wait
TRIES = 8  # so many of those that wait to be moved are sent to an instance that has told of its load


class ServingScheduler:
    """At most `queue_limit` requests are live at a time; more are turned away (`check`). `elasticity`: who changes groups,
    roles and the number of instances, within which limits (None = nobody but users). `times`: predictions of one device with
    the model (None = the order of magnitude of one, until instances tell how long things take there); `slo`: what was
    promised, for deadlines. `groups`: by the name of an instance's slot (`i3` of `i3~1`), the group that it begins in.
    `keep_first`: the first token of an answer that goes on elsewhere is told with the second one, if its promise leaves the
    time."""

    def __init__(
        self,
        routing: RoutingPolicy,
        queue_limit: int = 4096,
        *,
        elasticity: Elasticity | None = None,
        times: StageTimes | None = None,
        slo: Slo | None = None,
        groups: Mapping[str, Group] | None = None,
        keep_first: bool = False,
    ) -> None:
        self._queue_limit = queue_limit
        self._out: list[ServingAction] = []
        self._live: dict[str, Live] = {}
        self._homeless: dict[str, Live] = {}  # requests whose next stage no instance may do
        self._held: dict[str, Live] = {}  # those that wait to be moved and are not under way
        self._keep_first = keep_first
        self._kept: dict[str, Live] = {}  # those whose first token is kept
        self.counts: Counter[str] = Counter()
        self._news: dict[str, Server] = {}  # who may have room for a prompt since the last event
        self._slo = slo or Slo()
        self._routing = routing
        self.elasticity = elasticity or Elasticity()
        self._rates = StageRates.of(times) if times is not None else StageRates()
        self._told_rates = ToldRates(self._rates) if times is None else None
        self._fleet = Fleet(routing, self._out, self._rates, strict=self.elasticity.strict)
        self._images = ImageDispatch(self._fleet, self._live)
        self._line = WaitingLine(lambda view: routing.order(view, self._fleet.now_ns))
        self._elastic = Elastic(
            self.elasticity, self._fleet, self._line, self._homeless, self._slo, self._out, self.counts
        )
        self._groups = dict(groups or {})
        self._attempts = 0

    # --- questions

    @property
    def live(self) -> int:
        return len(self._live)

    @property
    def servers(self) -> dict[str, Server]:
        """Instances by name, in order of joining. To be read only."""
        return self._fleet.servers

    @property
    def rates(self) -> StageRates:
        """What predictions are made by."""
        return self._rates

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

    @property
    def waiting(self) -> int:
        """Requests that wait here, for an instance with room or for one that may do their next stage."""
        return len(self._line) + len(self._homeless)

    @property
    def tick_ns(self) -> int:
        """How often a `Tick` is wanted while there are instances or requests; 0 = never."""
        return self._elastic.tick_ns or (TICK_NS if self._routing.late else 0)

    @property
    def decisions(self) -> Sequence[Decision]:
        """The last changes of groups, roles and instances, and refusals, with their reasons; oldest first."""
        return self._elastic.decisions

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
        self._fleet.now_ns = now_ns
        match event:
            case InstanceSaid():
                if server := self._fleet.servers.get(event.name):
                    self._said(now_ns, server, event.message, event.logprobs)
            case RequestSubmitted():
                self._submitted(now_ns, event)
            case RequestAbandoned():
                if gone := self._live.get(event.request_id):
                    self._drop_kept(gone)
                    self._call_off(gone)
                    self._forget(gone)
            case InstanceJoined():
                self._joined(event, now_ns)
            case InstanceLost():
                if server := self._fleet.servers.get(event.name):
                    self._groups[event.name.partition("~")[0]] = server.group
                    if self._told_rates is not None:
                        self._told_rates.forget(event.name)
                    self._fleet.lose(event.name)
                    self._lost(event.name, now_ns)
            case RolesAsked():
                self._roles_asked(now_ns, event)
            case MoveWanted():
                self._move_wanted(event.request_id, event.to, "asked for")
            case Tick():
                self._tick(now_ns)
            case _:
                raise AssertionError(f"{type(event).__name__} is not for the serving scheduler")
        if self._news:
            for server in self._news.values():
                self._place_waiting(server)
            self._news.clear()
        if self._elastic.is_due(now_ns):
            self._look(now_ns)
        out = self._out[:]
        self._out.clear()
        return out

    def _submitted(self, now_ns: int, event: RequestSubmitted) -> None:
        request = event.request
        live = Live(request, frozenset(event.pixels), list(request.made), now_ns)
        live.deadline_ns = now_ns + self._slo.ttft_of(len(request.prompt), len(request.images))
        live.predict(self._rates)
        self._live[live.request_id] = live
        self._elastic.arrived(live)
        if self._line.count(live.modality):  # nobody passes those who wait, but in their order
            self._line.add(live)
            self._elastic.pressed()
            if self._line.first(()) is live:
                self._place_waiting()
        else:
            self._dispatch(live, "new")

    def _tick(self, now_ns: int) -> None:
        self._line.reorder()
        self._place_waiting()
        for live in [each for each in self._kept.values() if now_ns + self.tick_ns > each.deadline_ns]:
            self._tell_kept(live)
        for live in list(islice(self._held.values(), TRIES)):
            self._find_decoder(live)
        self._look(now_ns)

    def _look(self, now_ns: int) -> None:
        """Have the policies look at the fleet, and do what is allowed of what they propose."""
        changed = False
        for proposal in self._elastic.look(now_ns):
            if isinstance(proposal, MoveRequest):
                self._move_wanted(proposal.request_id, proposal.to, proposal.reason)
            else:
                changed |= self._elastic.apply(proposal)
        if changed:
            self._retry()
        for server in self._elastic.emptied():
            self._images.forget(server)
            tell = StopInstance if server.state == "ending" else SleepInstance
            self._out.append(tell(server.name, server.reason))

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
                self._hear_of_room(server)
            case TellRoles():
                if message.by_batch:
                    server.switches += 1
                    server.switch_ns = now_ns - server.asked_ns
            case TellAsleep():
                self._elastic.fell_asleep(server)
            case TellAwake():
                if self._elastic.awake(server, message.roles):
                    self._ready(now_ns, stand_in=True)
            case TellStatus():
                server.heard(message)
                if message.free_blocks:
                    self._has_room(server)
            case TellTimes():
                if self._told_rates is not None:
                    self._renew(self._told_rates.hear(server.name, message.factors))

    def _renew(self, rates: StageRates) -> None:
        """Things take other times than was thought; the scheduler and its policies predict by these from now on."""
        self._rates = rates
        self._fleet.renew(rates)
        policies: tuple[object, ...] = (
            self._routing,
            self.elasticity.groups,
            self.elasticity.stages,
            self.elasticity.scale,
        )
        for policy in policies:
            if isinstance(policy, UsesRates):
                policy.rates = rates

    # --- requests

    def _current(self, server: Server, attempt: str) -> Live | None:
        """The live request whose current attempt is this one at this server; an attempt that is over is called off."""
        live = self._live.get(attempt.rpartition("#")[0])
        if live is None or live.attempt != attempt:
            self._out.append(CancelAttempt(server.name, attempt))
            return None
        return live if live.owner == server.name else None

    def _dispatch(self, live: Live, reason: str, only: Server | None = None) -> bool:
        """Send a request to prefill somewhere, its images first to encoders; False where it waits. `only`: nowhere else."""
        images = live.request.images
        able = self._fleet.able(Role.PREFILL)
        if not able or (images and not self._fleet.able(Role.ENCODE)):
            self._homeless[live.request_id] = live
            self._line.remove(live)
            self._elastic.pressed()
            return False
        server = self._fleet.pick(Role.PREFILL, live, [only] if only is not None else able)
        if server is None:
            if live.request_id not in self._line:
                self._line.add(live)
                self._elastic.pressed()
            return False
        self._line.remove(live)
        self._attempts += 1
        attempt = live.begin_attempt(self._attempts, server.name)
        server.take_prompt(live)
        self._fleet.sent(live, server)
        hashes = dict.fromkeys(image.content_hash for image in images)
        actions, expected, lacking = self._images.dispatch(live, server.name, hashes)
        if lacking:
            self._leave(live)
            self._ask_pixels(live, lacking)
            return True
        self.counts["dispatched"] += 1
        self._out.append(QueueAttempt(server.name, attempt, expected, reason))
        self._out += actions
        return True

    def _place_waiting(self, server: Server | None = None) -> None:
        """Those who wait for room, in their order, for as long as there is some (at `server`, if it alone has news)."""
        full: set[Modality] = set()
        if server is not None and (Role.PREFILL not in server.roles or server.name not in self._fleet.servers):
            return
        while (live := self._line.first(full)) is not None:
            if not self._dispatch(live, "it has room", server) and live.request_id in self._line:
                full.add(live.modality)

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
        if message.first != len(live.told):
            live.early[message.first] = (message, logprobs)
        elif self._tell(server, live, message, logprobs):
            return
        while live.early and len(live.told) in live.early:
            if self._tell(server, live, *live.early.pop(len(live.told))):
                return
        self._mend_gap(live)

    def _tell(self, server: Server, live: Live, message: TellTokens, logprobs: tuple[TokenLogprob, ...]) -> bool:
        """Tell the client; whether that was the end."""
        live.told += message.tokens
        for name in (live.owner, live.moving_to) if live.prefilled else ():
            if holder := self._fleet.servers.get(name):
                holder.more_context(len(message.tokens))
        made = TokensMade(
            live.request_id,
            message.first,
            message.tokens,
            logprobs,
            message.finish,
            message.cached_tokens,
            message.reason,
        )
        if self._may_keep(server, live, made):
            live.kept = made
            self._kept[live.request_id] = live
            return False
        self._tell_kept(live)
        self._answer(live, made)
        if message.finish:
            self._elastic.ended(live)
            self._forget(live)
            self._has_room(server)
        return message.finish is not None

    def _answer(self, live: Live, made: TokensMade) -> None:
        live.first_ns = live.first_ns or self._fleet.now_ns
        self._out.append(Answer(made))

    def _may_keep(self, server: Server, live: Live, made: TokensMade) -> bool:
        """A move leaves a gap behind the first token, and answers of a few tokens would miss the TPOT by it. So the client is
        told of that token when the answer goes on, as engines do whose decoders answer, unless it would come too late:
        `deadline >= now + M(r) + 2 TPOT`."""
        first = made.first == 0 and len(made.tokens) == 1 and not made.finish
        if not (self._keep_first and first and live.owner == server.name) or Role.DECODE in server.roles:
            return False
        gap_ns = self._rates.move_s(live.positions) * 1e9 + 2 * self._slo.tpot_ns
        return live.deadline_ns >= self._fleet.now_ns + gap_ns

    def _tell_kept(self, live: Live) -> None:
        if made := self._drop_kept(live):
            self._answer(live, made)

    def _drop_kept(self, live: Live) -> TokensMade | None:
        self._kept.pop(live.request_id, None)
        made, live.kept = live.kept, None
        return made

    def _mend_gap(self, live: Live) -> None:
        """Tokens are missing that an instance made before the attempt moved on. If it is lost, so are they."""
        if live.early and not all(name in self._fleet.servers for name in live.before):
            self._begin_anew(live, "words of an instance that was lost are missing")

    def _begin_anew(self, live: Live, reason: str) -> None:
        """An instance was lost that the attempt needed."""
        self._tell_kept(live)
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
            server.drop_prompt(live)
            server.take_decode(live)
            self._hear_of_room(server)
            self._images.release(live)

    def _call_off(self, live: Live) -> None:
        for name in (live.owner, live.moving_to):
            if name in self._fleet.servers:
                self._out.append(CancelAttempt(name, live.attempt))

    def _leave(self, live: Live) -> None:
        """The attempt is over, at its owner and on its way."""
        self._tell_kept(live)
        if server := self._fleet.servers.get(live.owner):
            if live.prefilled:
                server.drop_decode(live)
            else:
                server.drop_prompt(live)
            self._hear_of_room(server)
        if target := self._fleet.servers.get(live.moving_to):
            target.drop_decode(live)
        self._not_held(live)
        self._images.release(live)
        live.end_attempt()

    def _forget(self, live: Live) -> None:
        self._leave(live)
        self._homeless.pop(live.request_id, None)
        self._line.remove(live)
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
        server = self._fleet.choose(Role.DECODE, live, apart_from=live.refused_by | {live.owner})
        if server is None:
            live.refused_by.clear()
            self._held[live.request_id] = live
            self._tell_kept(live)
        else:
            self._move(live, server, "its prompt is done")

    def _has_room(self, server: Server) -> None:
        """An instance has told of its load, or of an end: some of those that no instance would take are sent there."""
        server.news += 1
        self._hear_of_room(server)
        if not self._held or Role.DECODE not in server.roles:
            return
        for live in list(islice(self._held.values(), TRIES)):
            if live.owner != server.name and self._fleet.pick(Role.DECODE, live, [server]) is not None:
                self._move(live, server, "it may have room again")

    def _hear_of_room(self, server: Server) -> None:
        if self._line:
            self._news[server.name] = server

    def _move(self, live: Live, to: Server, reason: str) -> None:
        self._held.pop(live.request_id, None)
        live.moving_to, live.news = to.name, to.news
        to.take_decode(live)
        self._out.append(MoveAttempt(live.owner, live.attempt, to.name, reason))

    def _move_failed(self, live: Live, to: str) -> None:
        self.counts["moves_failed"] += 1
        if live.moving_to != to:
            return
        target = self._fleet.servers[to]
        target.drop_decode(live)
        live.moving_to = ""
        if target.news == live.news:  # else it has told of room since, and may take it now
            live.refused_by.add(to)
        if live.held:
            self._find_decoder(live)

    def _moved(self, server: Server, message: TellMoved) -> None:
        live = self._live.get(message.request_id.rpartition("#")[0])
        if live is None or live.attempt != message.request_id or message.source != live.owner:
            self._out.append(CancelAttempt(server.name, message.request_id))
            return
        if live.moving_to != server.name:  # asked for twice: the first order was refused, the second was not
            if target := self._fleet.servers.get(live.moving_to):
                target.drop_decode(live)
            server.take_decode(live)
        self._fleet.servers[live.owner].drop_decode(live)
        live.before.add(live.owner)
        live.owner, live.moving_to, live.held = server.name, "", False
        live.refused_by.clear()
        self.counts["moves"] += 1
        if self._fleet.now_ns + self._slo.tpot_ns > live.deadline_ns:
            self._tell_kept(live)

    def _move_wanted(self, request_id: str, name: str, why: str) -> None:
        live, to = self._live.get(request_id), self._fleet.servers.get(name)
        reason = ""
        if live is None or to is None:
            reason = "there is no such request or instance"
        elif not live.prefilled or live.moving_to or live.owner == to.name:
            reason = "its prompt is not done, it is being moved, or it is there already"
        elif Role.DECODE not in to.roles:
            reason = f"{to.name} may not decode"
        else:
            self._move(live, to, why)
            return
        self._out.append(RecordServingRefusal(request_id, reason))

    # --- instances

    def _retry(self) -> None:
        """Instances may do other stages than before: those that wait for one may find it."""
        for live in list(self._homeless.values()):
            del self._homeless[live.request_id]
            self._dispatch(live, "an instance may do its next stage")
        self._place_waiting()
        for live in list(self._held.values()):
            self._find_decoder(live)

    def _joined(self, event: InstanceJoined, now_ns: int) -> None:
        self._elastic.joined(self._fleet.join(event.name, event.roles, self._group_of(event.name)))
        self._ready(now_ns, stand_in=self.counts["instances_lost"] > 0)

    def _ready(self, now_ns: int, *, stand_in: bool) -> None:
        """An instance more does what it is configured to. At the start nobody need stand in for those to come."""
        self._fleet.give_back_stages(now_ns)
        if stand_in:
            self._fleet.take_over_stages(now_ns)
        self._retry()

    def _group_of(self, name: str) -> Group:
        """That of its slot: who comes in the place of one that was lost serves whom that served."""
        return self._groups.get(name.partition("~")[0], "shared")

    def _lost(self, name: str, now_ns: int) -> None:
        self.counts["instances_lost"] += 1
        self._elastic.lost(name)
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
        if server.state != "awake":
            self._out.append(RecordServingRefusal(event.name, NOT_AWAKE[server.state]))
            return
        if missing := self._fleet.lacks_without(server, event.roles):
            self._out.append(RecordServingRefusal(event.name, f"nobody else may do {missing.letters}"))
            return
        if missing_here := self._fleet.group_lacks(server, event.roles, server.group):
            self._out.append(RecordServingRefusal(event.name, missing_here))
            return
        server.configured = event.roles
        self._fleet.set_roles(server, event.roles, "asked for", now_ns)
        self._fleet.give_back_stages(now_ns)
        self._retry()
