"""Groups, roles and the number of instances: policies propose, and what the limits allow is done.

The limits, held here alone: every stage is done by somebody, and where groups are strict every group keeps the stages that
it needs; an instance that has changed rests for a cool-down, and one that would change back for twice as long; there are
between `min_instances` and `max_instances`; whoever ends or sleeps has nothing to do any more; none is started while one
sleeps. One that sleeps is no server and counts as none. A refusal is recorded once, until its reason changes.

Over 400 lines, for the limits are to be found in one place.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from tierline.core.errors import InvalidInput
from tierline.core.fleet_view import (
    DecodeView,
    Demand,
    FleetView,
    GroupPolicy,
    MemberView,
    MoveRequest,
    PromptView,
    Proposal,
    ScalePolicy,
    SleeperView,
    StagePolicy,
)
from tierline.core.request import Role
from tierline.core.routing_view import MODALITIES, Group, Modality
from tierline.core.serving_actions import (
    RecordServingRefusal,
    ServingAction,
    SetGroup,
    SetRoles,
    SleepInstance,
    StartInstance,
    StopInstance,
    WakeInstance,
)
from tierline.core.slo import Slo
from tierline.perf.serving_demand import DemandMeter, OutputHistory, decode_demand_s
from tierline.schedulers.serving_fleet import Fleet
from tierline.schedulers.serving_queue import WaitingLine
from tierline.schedulers.serving_state import Live, Server, ServerState

SAMPLE = 16  # requests of an instance or a line that policies see one by one,
SAMPLED = 192  # and of all instances together, though two of each at least
TPOT_WEIGHT = 1 / 64  # of an answer that has ended, in the mean
REMEMBERED = 64  # decisions, for people
NOT_AWAKE: Mapping[ServerState, str] = {
    "leaving": "it is to end",
    "ending": "it is to end",
    "drowsy": "it is to sleep",
    "falling": "it is to sleep",
    "asleep": "it sleeps",
    "waking": "it is being woken",
}


@dataclass(frozen=True, slots=True)
class Elasticity:
    """Who changes the fleet, and how fast it may change. `period_ns`: between ticks; `react_ns`: the least time between two
    looks when requests begin to wait between ticks; `start_timeout_ns`: an instance asked for that has not joined by then, or
    one woken that is not awake, is no longer counted on. `max_instances` 0: none is started, stopped or put to sleep."""

    groups: GroupPolicy | None = None
    stages: StagePolicy | None = None
    scale: ScalePolicy | None = None
    period_ns: int = 500_000_000
    react_ns: int = 100_000_000
    cool_down_ns: int = 4_000_000_000
    start_timeout_ns: int = 120_000_000_000
    min_instances: int = 1
    max_instances: int = 0

    def __post_init__(self) -> None:
        """Raises `InvalidInput`."""
        if self.period_ns <= 0 or self.react_ns <= 0 or self.cool_down_ns < 0:
            raise InvalidInput(
                "The period and the reaction time of elasticity must be above 0, the cool-down not below."
            )
        if self.min_instances < 0 or (self.max_instances and self.max_instances < self.min_instances):
            raise InvalidInput(
                f"{self.min_instances} to {self.max_instances} instances: an order like 1 to 8 is needed."
            )

    @property
    def strict(self) -> bool:
        return self.groups is not None and self.groups.strict

    @property
    def policies(self) -> tuple[GroupPolicy | StagePolicy | ScalePolicy, ...]:
        return tuple(policy for policy in (self.groups, self.stages, self.scale) if policy is not None)


@dataclass(frozen=True, slots=True)
class Decision:
    """What was done or refused, to whom, and why."""

    at_ns: int
    subject: str
    what: str
    reason: str


@dataclass(slots=True)
class Elastic:
    """`out`: where actions are appended. `homeless`: requests whose next stage nobody may do."""

    options: Elasticity
    fleet: Fleet
    line: WaitingLine
    homeless: Mapping[str, Live]
    slo: Slo
    out: list[ServingAction]
    counts: Counter[str]
    history: OutputHistory = field(default_factory=OutputHistory)
    meters: dict[Modality, DemandMeter] = field(
        default_factory=lambda: {modality: DemandMeter() for modality in MODALITIES}
    )
    decisions: deque[Decision] = field(default_factory=lambda: deque(maxlen=REMEMBERED))
    mean_tpot_s: float = 0.0
    _starting: deque[tuple[int, Group]] = field(default_factory=deque)  # asked for, and not joined: when, for whom
    _before: dict[tuple[str, type], Role | Group] = field(
        default_factory=dict
    )  # what an instance's last change has ended
    _refused: dict[str, str] = field(default_factory=dict)
    _touched: set[tuple[str, type]] = field(default_factory=set)  # changed in this look
    _looked_ns: int = 0
    _learns_ns: int = 0  # when lengths are learnt from again
    _pressed: bool = False

    @property
    def tick_ns(self) -> int:
        return self.options.period_ns if self.options.policies else 0

    # --- what happens

    def arrived(self, live: Live) -> None:
        remaining = self.history.remaining(0)
        self.meters[live.modality].arrived(
            self.fleet.now_ns,
            live.encode_s,
            live.prefill_s,
            decode_demand_s(self.fleet.rates, remaining, live.positions),
        )

    def ended(self, live: Live) -> None:
        """A request has all its output."""
        made = len(live.told) - len(live.request.made)
        self.history.ended(len(live.told))
        if made > 1 and live.first_ns:
            tpot_s = (self.fleet.now_ns - live.first_ns) / 1e9 / (made - 1)
            self.mean_tpot_s += TPOT_WEIGHT * (tpot_s - self.mean_tpot_s) if self.mean_tpot_s else tpot_s

    def joined(self, server: Server) -> None:
        """One that was asked for serves whom it was asked for."""
        if self._starting:
            _, group = self._starting.popleft()
            server.set_group(group if group != "shared" else server.group)

    def lost(self, name: str) -> None:
        self._refused.pop(name, None)
        for kind in (SetRoles, SetGroup):
            self._before.pop((name, kind), None)

    def fell_asleep(self, server: Server) -> None:
        """It says so. It may have been woken, or told to end, since it was told to."""
        self.counts["instance_sleeps"] += 1
        if server.state == "falling":
            server.enter("asleep", self.fleet.now_ns)

    def awake(self, server: Server, roles: Role) -> bool:
        """It says so; whether that was asked for."""
        if server.state != "waking":
            return False
        self.counts["instance_wakes"] += 1
        self.fleet.awake(server, roles)
        return True

    def pressed(self) -> None:
        """A request has begun to wait."""
        self._pressed = True

    def is_due(self, now_ns: int) -> bool:
        """Whether to look before the next tick."""
        return (
            self._pressed
            and now_ns - self._looked_ns >= self.options.react_ns
            and (bool(self.line) or bool(self.homeless))
            and bool(self.options.policies)
        )

    # --- proposals

    def look(self, now_ns: int) -> Iterator[Proposal]:
        """What the policies propose, one after the other; each sees what became of the proposals of the one before."""
        self._looked_ns, self._pressed = now_ns, False
        self._touched.clear()
        while self._starting and now_ns - self._starting[0][0] >= self.options.start_timeout_ns:
            self._starting.popleft()
        if not self.fleet.servers and not self.options.max_instances:
            return
        if now_ns >= self._learns_ns:  # O(answers)
            self.history.learn(self._running(now_ns))
            self._learns_ns = now_ns + self.options.period_ns
        view = None
        for policy in self.options.policies:
            if view is None or self._touched:
                view = self.view(now_ns)
            yield from policy.propose(view)

    def _running(self, now_ns: int) -> Iterator[int]:
        """About how many tokens each answer has that goes on: what was told of it is up to a second old."""
        tpot_ns = self.mean_tpot_s * 1e9
        for server in self.fleet.servers.values():
            for live in server.decodes.values():
                told = len(live.told)
                yield max(told, int((now_ns - live.first_ns) / tpot_ns)) if tpot_ns and live.first_ns else told

    def apply(self, proposal: Proposal) -> bool:
        """Do it if it may be done; whether anything has changed."""
        assert not isinstance(proposal, MoveRequest)
        if isinstance(proposal, StartInstance):
            return self._start(proposal)
        server = self.fleet.servers.get(proposal.instance)
        if server is None:
            return self._refuse(proposal.instance, type(proposal).__name__, "there is no such instance")
        match proposal:
            case SetRoles():
                return self._set_roles(server, proposal.roles, proposal.reason)
            case SetGroup():
                return self._set_group(server, proposal.group, proposal.reason)
            case StopInstance():
                return self._stop(server, proposal.reason)
            case SleepInstance():
                return self._sleep(server, proposal.reason)
            case WakeInstance():
                return self._wake(server, proposal)

    def emptied(self) -> list[Server]:
        """Instances that are to end or to sleep and have nothing to do any more; from now on they are told to."""
        done = [
            server
            for server in self.fleet.servers.values()
            if server.state in ("leaving", "drowsy") and not (server.prompts or server.decodes or server.encoding)
        ]
        for server in done:
            if server.state == "leaving":
                server.enter("ending", self.fleet.now_ns)
            else:
                self.fleet.fall_asleep(server)
        return done

    def cooling(self, server: Server, kind: type = SetRoles) -> bool:
        """Whether such a change must wait. A group that is a preference, and the roles, need not wait for each other."""
        changed_ns = self._changed_ns(server, kind)
        return changed_ns is not None and self.fleet.now_ns - changed_ns < self.options.cool_down_ns

    def _changed_ns(self, server: Server, kind: type) -> int | None:
        return server.changed_ns if self.fleet.strict or kind is SetRoles else server.regrouped_ns

    def _set_roles(self, server: Server, roles: Role, reason: str) -> bool:
        if server.roles == roles:
            return False
        why_not = self._why_not(server, SetRoles, roles, server.group)
        if not roles:
            why_not = "an instance without roles would do nothing"
        elif missing := self.fleet.lacks_without(server, roles) & ~self.fleet.lacks_without(server, server.roles):
            why_not = f"nobody else may do {missing.letters}"
        if why_not:
            return self._refuse(server.name, f"roles {roles.letters}", why_not)
        self._remember(server, SetRoles)
        server.configured = roles
        self.fleet.set_roles(server, roles, reason, self.fleet.now_ns)
        return self._done(server.name, "role_changes", f"roles {roles.letters}", reason)

    def _set_group(self, server: Server, group: Group, reason: str) -> bool:
        if server.group == group:
            return False
        if why_not := self._why_not(server, SetGroup, server.roles, group):
            return self._refuse(server.name, f"group {group}", why_not)
        self._remember(server, SetGroup)
        self.fleet.set_group(server, group, reason, self.fleet.now_ns)
        return self._done(server.name, "group_changes", f"group {group}", reason)

    def _why_not(self, server: Server, kind: type, roles: Role, group: Group) -> str:
        """Which limit bars a change of an instance; "" if none does."""
        if server.state != "awake":
            return NOT_AWAKE[server.state]
        if (server.name, kind) in self._touched:
            return "it was changed at this moment"
        if not any(name == server.name for name, _ in self._touched) or not self.fleet.strict:
            changed_ns = self._changed_ns(server, kind)
            since_ns = self.fleet.now_ns - (changed_ns or 0)
            if self.cooling(server, kind):
                return f"it was changed less than {self.options.cool_down_ns / 1e9:g} s ago"
            wanted = roles if kind is SetRoles else group
            undone = changed_ns is not None and self._before.get((server.name, kind)) == wanted
            if undone and since_ns < 2 * self.options.cool_down_ns:
                return f"it was what it would be less than {2 * self.options.cool_down_ns / 1e9:g} s ago"
        return self.fleet.group_lacks(server, roles, group)

    def _remember(self, server: Server, kind: type) -> None:
        self._before[server.name, kind] = server.roles if kind is SetRoles else server.group
        self._touched.add((server.name, kind))

    def _start(self, proposal: StartInstance) -> bool:
        if full := self._full():
            return self._refuse("fleet", "start", full)
        if sleeper := next((each for each in self.fleet.servers.values() if each.sleeps), None):
            return self._refuse("fleet", "start", f"{sleeper.name} sleeps and is to be woken first")
        self._starting.append((self.fleet.now_ns, proposal.group))
        self.out.append(proposal)
        return self._done("fleet", "instances_started", "start", proposal.reason)

    def _full(self) -> str:
        """Why there may be no more instances; "" where there may be."""
        count = sum(not each.sleeps for each in self.fleet.servers.values()) + len(self._starting)
        most = self.options.max_instances
        return f"{count} instances are there, {most} allowed" if count >= most else ""

    def _stop(self, server: Server, reason: str) -> bool:
        """One that sleeps already is told at once."""
        if server.state in ("leaving", "ending"):
            return False
        if server.state == "drowsy":
            server.enter("leaving", self.fleet.now_ns)
        elif server.sleeps:
            server.enter("ending", self.fleet.now_ns)
            server.reason = reason
            self.out.append(StopInstance(server.name, reason))
        elif why_not := self._why_needed(server):
            return self._refuse(server.name, "stop", why_not)
        else:
            self.fleet.send_away(server, "leaving", reason, self.fleet.now_ns)
        return self._done(server.name, "instances_stopped", "stop", reason)

    def _sleep(self, server: Server, reason: str) -> bool:
        if server.sleeps:
            return False
        if why_not := self._why_needed(server):
            return self._refuse(server.name, "sleep", why_not)
        self.fleet.send_away(server, "drowsy", reason, self.fleet.now_ns)
        return self._done(server.name, "", "sleep", reason)

    def _wake(self, server: Server, proposal: WakeInstance) -> bool:
        """One that has not been told to sleep yet just goes on."""
        if server.state in ("awake", "waking"):
            return False
        if not server.sleeps:
            return self._refuse(server.name, "wake", NOT_AWAKE[server.state])
        if full := self._full():
            return self._refuse(server.name, "wake", full)
        if server.state == "drowsy":
            self.fleet.call_back(server, Role(0), f"called back: {proposal.reason}", self.fleet.now_ns)
        else:
            server.enter("waking", self.fleet.now_ns)
            server.reason = proposal.reason
            if proposal.group != "shared":
                server.set_group(proposal.group)
            self.out.append(WakeInstance(server.name, server.group, proposal.reason, server.resume))
        return self._done(server.name, "", "wake", proposal.reason)

    def _why_needed(self, server: Server) -> str:
        """Which limit bars that an instance does nothing any more; "" if none does."""
        if server.state != "awake":
            return NOT_AWAKE[server.state]
        if self.cooling(server):
            return "it was changed a moment ago"
        staying = sum(each.state == "awake" for each in self.fleet.servers.values())
        if not self.options.max_instances or staying <= self.options.min_instances:
            return f"{staying} instances are there, and that many are needed"
        if staying == 1:
            # Others may be on their way with work that they will have to hand over.
            busy = any(each.prompts or each.decodes or each.encoding for each in self.fleet.servers.values())
            return "it is the last one and there is work" if busy or self.line or self.homeless else ""
        if missing := self.fleet.lacks_without(server, Role(0)):
            return f"nobody else may do {missing.letters}"
        return self.fleet.group_lacks(server, Role(0), server.group)

    def _done(self, subject: str, key: str, what: str, reason: str) -> bool:
        """`key`: what is counted ("" = it is when the instance tells that it is done)."""
        if key:
            self.counts[key] += 1
        self._refused.pop(subject, None)
        self.decisions.append(Decision(self.fleet.now_ns, subject, what, reason))
        return True

    def _refuse(self, subject: str, what: str, reason: str) -> bool:
        told = f"{what} refused: {reason}"
        if self._refused.get(subject) != told:
            self._refused[subject] = told
            self.counts["refusals"] += 1
            self.out.append(RecordServingRefusal(subject, told))
            self.decisions.append(Decision(self.fleet.now_ns, subject, what, f"refused: {reason}"))
        return False

    # --- what policies see

    def view(self, now_ns: int) -> FleetView:
        """O(instances): of requests a sample."""
        everybody = self.fleet.servers.values()
        servers = [each for each in everybody if each.state == "awake"]
        since_ns = now_ns - self.options.start_timeout_ns
        waking = sum(each.state == "waking" and each.since_ns > since_ns for each in everybody)
        sample = max(2, min(SAMPLE, SAMPLED // max(1, len(servers))))
        return FleetView(
            now_ns=now_ns,
            members=tuple(self._member(now_ns, each, sample) for each in servers),
            text=self._demand(now_ns, "text"),
            multimodal=self._demand(now_ns, "multimodal"),
            slo=self.slo,
            starting=len(self._starting) + waking,
            sleeping=tuple(SleeperView(each.name, each.group, each.since_ns) for each in everybody if each.sleeps),
            min_instances=self.options.min_instances,
            max_instances=self.options.max_instances,
            mean_tpot_s=self.mean_tpot_s,
        )

    def _demand(self, now_ns: int, modality: Modality) -> Demand:
        rate, encode, prefill, decode = self.meters[modality].demand(now_ns)
        homeless = [live for live in self.homeless.values() if live.modality == modality]
        return Demand(
            modality=modality,
            rate=rate,
            encode=encode,
            prefill=prefill,
            decode=decode,
            waiting=self.line.count(modality) + len(homeless),
            waiting_s=self.line.prefill_s[modality] + sum(live.prefill_s + live.encode_s for live in homeless),
            queue=tuple(_prompt(live, now_ns) for live in islice(self.line.waiting(modality), SAMPLE)),
        )

    def _member(self, now_ns: int, server: Server, sample: int) -> MemberView:
        status = server.status
        return MemberView(
            name=server.name,
            group=server.group,
            roles=server.roles,
            cooling=self.cooling(server),
            group_cooling=self.cooling(server, SetGroup),
            prompts=len(server.prompts),
            prefill_tokens=server.prefill_tokens,
            prefill_s=server.prefill_s,
            encoding=server.encoding,
            encode_s=server.encode_s,
            decoding=server.decoding,
            held=status.held if status else 0,
            context_tokens=server.context_tokens,
            decode_s=self.fleet.rates.decode_s(server.decoding, server.context_tokens),
            free_blocks=status.free_blocks if status else 0,
            total_blocks=status.total_blocks if status else 0,
            queue=tuple(_prompt(live, now_ns) for live in islice(server.prompts.values(), sample)),
            decodes=tuple(
                DecodeView(live.request_id, live.positions, len(live.told), self.history.remaining(len(live.told)))
                for live in islice(server.decodes.values(), sample)
            ),
        )


def _prompt(live: Live, now_ns: int) -> PromptView:
    waited_s = max(0, now_ns - live.submitted_ns) / 1e9
    return PromptView(live.request_id, live.modality, live.positions, live.prefill_s, waited_s)
