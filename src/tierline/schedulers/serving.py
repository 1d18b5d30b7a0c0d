"""The scheduler of the serving tier: which instance does which stage of which request. A state machine without I/O.

A request goes encode -> prefill -> decode; each stage is done by an instance that has the role, and two stages in one place
need no transfer. A request is at one instance at any moment, by an *attempt* whose id changes whenever it begins anew; words
about other attempts change nothing. Of what an instance loses, everything the client knows is kept here, so another
instance computes it again and goes on with the next token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

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
    TellProgress,
    TellReturned,
    TellRoles,
    TellStatus,
    TellTimes,
    TellTokens,
)
from tierline.core.request import TokenLogprob, TokensMade
from tierline.core.routing_view import Group, RoutingPolicy
from tierline.core.serving_actions import (
    CancelAttempt,
    NotifyLost,
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
from tierline.perf.fitted_rates import ToldRates, UsesRates
from tierline.perf.serving_demand import StageRates
from tierline.schedulers.serving_answers import Answers
from tierline.schedulers.serving_attempts import Attempts
from tierline.schedulers.serving_elastic import NOT_AWAKE, Decision, Elastic, Elasticity
from tierline.schedulers.serving_fleet import Fleet
from tierline.schedulers.serving_images import ImageDispatch
from tierline.schedulers.serving_moves import TRIES, Moves
from tierline.schedulers.serving_queue import WaitingLine
from tierline.schedulers.serving_state import Live, Server

TICK_NS = 100_000_000  # for policies that have requests wait


class ServingScheduler:
    """At most `queue_limit` requests are live at a time; more are turned away (`check`). `elasticity`: who changes groups,
    roles and the number of instances, within which limits (None = nobody but users). `times`: predictions of one device with
    the model (None = the order of magnitude of one, until instances tell how long things take there); `slo`: what was
    promised, for deadlines. `groups`: by the name of an instance's slot (`i3` of `i3~1`), the group that it begins in.
    `keep_first`: the first token of an answer that goes on elsewhere may be told with the second (`Answers`)."""

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
        self.counts: Counter[str] = Counter()
        self._slo = slo or Slo()
        self._routing = routing
        self.elasticity = elasticity or Elasticity()
        self._rates = StageRates.of(times) if times is not None else StageRates()
        self._told_rates = ToldRates(self._rates)
        self._fleet = Fleet(routing, self._out, self._rates, strict=self.elasticity.strict)
        self._images = ImageDispatch(self._fleet, self._live)
        self._line = WaitingLine(lambda view: routing.order(view, self._fleet.now_ns))
        self._elastic = Elastic(
            self.elasticity, self._fleet, self._line, self._homeless, self._slo, self._out, self.counts
        )
        self._answers = Answers(self._fleet, self._slo, self._out, keep_first)
        self._moves = Moves(self._fleet, self._live, self._answers, self._out, self.counts)
        self._attempts = Attempts(
            fleet=self._fleet,
            live=self._live,
            line=self._line,
            homeless=self._homeless,
            images=self._images,
            answers=self._answers,
            moves=self._moves,
            pressed=self._elastic.pressed,
            out=self._out,
            counts=self.counts,
        )
        self._groups = dict(groups or {})

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
                    self._attempts.abandoned(gone)
            case InstanceJoined():
                self._joined(event, now_ns)
            case InstanceLost():
                if server := self._fleet.servers.get(event.name):
                    self._groups[event.name.partition("~")[0]] = server.group
                    self._told_rates.forget(event.name)
                    self._fleet.lose(event.name)
                    self._lost(event.name, now_ns)
            case RolesAsked():
                self._roles_asked(now_ns, event)
            case MoveWanted():
                self._moves.wanted(event.request_id, event.to, "asked for")
            case Tick():
                self._tick(now_ns)
            case _:
                raise AssertionError(f"{type(event).__name__} is not for the serving scheduler")
        self._settle(now_ns)
        out = self._out[:]
        self._out.clear()
        return out

    def _settle(self, now_ns: int) -> None:
        """Do what cannot wait for the next tick."""
        self._attempts.place_where_news()
        if self._elastic.is_due(now_ns):
            self._look(now_ns)

    def _submitted(self, now_ns: int, event: RequestSubmitted) -> None:
        request = event.request
        live = Live(request, frozenset(event.pixels), list(request.made), now_ns)
        live.deadline_ns = now_ns + self._slo.ttft_of(len(request.prompt), len(request.images))
        live.predict(self._rates)
        self._elastic.arrived(live)
        self._attempts.arrived(live)

    def _tick(self, now_ns: int) -> None:
        self._line.reorder()
        self._attempts.place_waiting()
        self._answers.tell_kept_before(now_ns + self.tick_ns)
        self._moves.retry(TRIES)
        self._look(now_ns)

    def _look(self, now_ns: int) -> None:
        """Have the policies look at the fleet, and do what is allowed of what they propose."""
        changed = False
        for proposal in self._elastic.look(now_ns):
            if isinstance(proposal, MoveRequest):
                self._moves.wanted(proposal.request_id, proposal.to, proposal.reason)
            else:
                changed |= self._elastic.apply(proposal)
        if changed:
            self._attempts.retry()
        for server in self._elastic.emptied():
            self._images.forget(server)
            tell = StopInstance if server.state == "ending" else SleepInstance
            self._out.append(tell(server.name, server.reason))

    def _said(self, now_ns: int, server: Server, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        match message:
            case TellTokens():
                self._tokens(server, message, logprobs)
            case TellProgress():
                for each in message.words:
                    self._tokens(server, each, ())
                    self._settle(now_ns)
            case TellEmbeddings():
                self._images.stored(server, message)
                self._attempts.hear_of_room(server)
            case TellStatus():
                server.heard(message)
                if message.free_blocks:
                    self._has_room(server)
            case TellPrefilled():
                if live := self._attempts.current(server, message.request_id):
                    self._attempts.past_prompt(server, live)
                    self._moves.prefilled(live)
            case TellImagesNeeded():
                if live := self._attempts.current(server, message.request_id):
                    actions, _, lacking = self._images.needed(live, server.name, message.hashes)
                    if lacking:
                        self._attempts.ask_pixels(live, lacking)
                    else:
                        self._out += actions
            case TellReturned():
                if live := self._attempts.current(server, message.request_id):
                    self._attempts.leave(live)
                    self._attempts.dispatch(live, f"{server.name} gave it back: {message.reason}")
            case TellMoved():
                self._moves.moved(server, message)
            case TellMoveFailed():
                if live := self._attempts.current(server, message.request_id):
                    self._moves.failed(live, message.to)
            case TellRoles():
                if message.by_batch:
                    server.switches += 1
                    server.switch_ns = now_ns - server.asked_ns
            case TellAsleep():
                self._elastic.fell_asleep(server)
            case TellAwake():
                if self._elastic.awake(server, message.roles):
                    self._ready(now_ns, stand_in=True)
            case TellTimes():
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

    def _has_room(self, server: Server) -> None:
        """An instance has told of its load, or of an end."""
        self._attempts.hear_of_room(server)
        self._moves.has_room(server)

    # --- tokens

    def _tokens(self, server: Server, message: TellTokens, logprobs: tuple[TokenLogprob, ...]) -> None:
        """Tokens of a moving attempt come from two instances; they are told in the order of their places."""
        live = self._live.get(message.request_id.rpartition("#")[0])
        if live is None or live.attempt != message.request_id:
            if not message.finish:
                self._out.append(CancelAttempt(server.name, message.request_id))
            return
        if live.owner == server.name and message.tokens:
            self._attempts.past_prompt(server, live)
            self._moves.not_held(live)  # it goes on there
        if message.first != len(live.told):
            live.early[message.first] = (message, logprobs)
        elif self._tell(server, live, message, logprobs):
            return
        while live.early and len(live.told) in live.early:
            if self._tell(server, live, *live.early.pop(len(live.told))):
                return
        self._attempts.mend_gap(live)

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
        self._answers.tell(server, live, made)
        if message.finish:
            self._elastic.ended(live)
            self._attempts.forget(live)
            self._has_room(server)
        return message.finish is not None

    # --- instances

    def _joined(self, event: InstanceJoined, now_ns: int) -> None:
        self._elastic.joined(self._fleet.join(event.name, event.roles, self._group_of(event.name)))
        self._ready(now_ns, stand_in=self.counts["instances_lost"] > 0)

    def _ready(self, now_ns: int, *, stand_in: bool) -> None:
        """An instance more does what it is configured to. At the start nobody need stand in for those to come."""
        self._fleet.give_back_stages(now_ns)
        if stand_in:
            self._fleet.take_over_stages(now_ns)
        self._attempts.retry()

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
            self._attempts.ask_pixels(self._live[request_id], hashes)
        for live in list(self._live.values()):
            if live.owner == name:
                self._attempts.begin_anew(live, f"{name} was lost")
            elif live.moving_to == name:
                # It may have taken the attempt over already, and its word of that died with it.
                self._attempts.begin_anew(live, f"{name} was lost while the request moved there")
            elif name in live.before:
                self._attempts.mend_gap(live)
        self._attempts.retry()

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
        self._attempts.retry()
