"""The real serving scheduler over the fake cluster's instances: what it decides is carried out, what it believes is counted.

After every event its counters are compared with its live requests, and these with what the instances really have.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from msgspec import structs

from tierline.core.fleet_view import stages_of
from tierline.core.instance_actions import Tell
from tierline.core.instance_events import (
    EncodeAsked,
    InstanceEvent,
    MoveAsked,
    PeerLost,
    RequestCancelled,
    RequestQueued,
    RolesSet,
    SleepAsked,
    WakeAsked,
)
from tierline.core.request import ALL_ROLES, FinishReason, Request, Role, TokensMade
from tierline.core.routing_view import MODALITIES, InstanceView, Modality, RequestView
from tierline.core.serving_actions import (
    Answer,
    AskPixels,
    CancelAttempt,
    EncodeOn,
    MoveAttempt,
    NotifyLost,
    QueueAttempt,
    ServingAction,
    SetGroup,
    SetRoles,
    SleepInstance,
    StartInstance,
    StopInstance,
    WakeInstance,
)
from tierline.core.serving_events import (
    InstanceJoined,
    InstanceLost,
    InstanceSaid,
    MoveWanted,
    RequestAbandoned,
    RequestSubmitted,
    RolesAsked,
    ServingEvent,
    Tick,
)
from tierline.schedulers.sequence import Phase
from tierline.schedulers.serving import ServingScheduler
from tierline.schedulers.serving_attempts import MAX_LOSSES
from tierline.testing.fake_engine import Model, Payload
from tierline.testing.fake_serving import SERVING
from tierline.testing.instances import FakeCluster

TICK_NS = 20  # a message takes one


@dataclass(slots=True)
class AnyOne:
    """Routing by chance."""

    random: random.Random
    late: ClassVar[bool] = False
    wants_affinity: ClassVar[bool] = False

    def choose(self, stage: Role, instances: tuple[InstanceView, ...], request: RequestView, now_ns: int) -> str:
        assert instances and (stage is Role.ENCODE or all(stage in each.roles for each in instances))
        return self.random.choice(instances).name

    def order(self, request: RequestView, now_ns: int) -> tuple[float, ...]:
        return ()


@dataclass(slots=True)
class Client:
    """One request as its client sees it. `lacking`: it was asked for pixels and has not sent the request again yet."""

    request: Request
    right: tuple[int, ...]
    right_finish: FinishReason
    told: list[int] = field(default_factory=list)
    finish: FinishReason | None = None
    reason: str = ""
    cancelled: bool = False
    lacking: tuple[str, ...] = ()
    owner: str = ""
    asked: int = 0

    @property
    def request_id(self) -> str:
        return self.request.request_id

    @property
    def made(self) -> tuple[int, ...]:
        return tuple(self.told)

    @property
    def over(self) -> bool:
        return self.cancelled or self.finish is not None


@dataclass(slots=True)
class RealServing:
    """`ServingScheduler` between clients and the fake cluster."""

    cluster: ServedCluster
    answers: dict[str, Client] = field(default_factory=dict)
    broken: set[str] = field(default_factory=set)
    seen: Counter[str] = field(default_factory=Counter)
    changed: dict[tuple[str, str], int] = field(default_factory=dict)  # (instance, roles or group) -> its last change
    covered: set[Modality] = field(default_factory=set)  # modalities whose group has had all stages that it needs
    scheduler: ServingScheduler = field(init=False)

    def __post_init__(self) -> None:
        make = self.cluster.make_scheduler
        self.scheduler = make() if make is not None else ServingScheduler(AnyOne(self.cluster.random))

    # --- clients

    def submit(self, request: Request, announce: bool = True) -> None:
        """`announce`: with the pixels of all images; else of those that are not known, as the front door does it."""
        self.answers[request.request_id] = Client(request, *Model.answer(request, self.cluster.limits))
        hashes = dict.fromkeys(image.content_hash for image in request.images)
        pixels = [each for each in hashes if announce or not self.scheduler.has_embeddings(each)]
        self.handle(RequestSubmitted(request, tuple(pixels)))

    def waiting(self) -> list[str]:
        return [client.request_id for client in self.answers.values() if client.lacking and not client.over]

    def resubmit(self, request_id: str) -> None:
        client = self.answers[request_id]
        hashes = dict.fromkeys(image.content_hash for image in client.request.images)
        client.lacking = ()
        self.handle(RequestSubmitted(structs.replace(client.request, made=client.made), tuple(hashes)))

    def cancel(self, client: Client) -> None:
        client.cancelled = True
        self.handle(RequestAbandoned(client.request_id))

    def move(self, client: Client, to: str) -> None:
        self.handle(MoveWanted(client.request_id, to))

    def _answered(self, told: TokensMade) -> None:
        client = self.answers[told.request_id]
        assert not client.over and not client.lacking, "a request was answered twice"
        assert told.first == len(client.told), "tokens were lost or told twice"
        client.told += told.tokens
        assert client.made == client.right[: len(client.made)], "wrong tokens"
        client.finish, client.reason = told.finish, told.reason
        if told.finish == "error" and client.right_finish != "error":
            broken = self.broken & {image.content_hash for image in client.request.images}
            assert broken or f"{MAX_LOSSES} instances were lost" in told.reason, told.reason
        elif told.finish:
            assert (client.made, client.finish) == (client.right, client.right_finish), "an answer was cut short"

    # --- instances

    @property
    def roles(self) -> dict[str, Role]:
        return {name: server.roles for name, server in self.scheduler.servers.items()}

    def set_roles(self, name: str, roles: Role) -> None:
        self.handle(RolesAsked(name, roles))

    def joined(self, name: str, roles: Role) -> None:
        self.handle(InstanceJoined(name, roles))

    def lost(self, name: str) -> None:
        self.handle(InstanceLost(name, "killed"))
        together, up = Role(0), [server for server in self.scheduler.servers.values() if server.is_up]
        for server in up:
            together |= server.roles
        assert not up or together == ALL_ROLES, f"after a loss nobody does {(ALL_ROLES & ~together).letters}"

    def told(self, name: str, tell: Tell) -> None:
        self.handle(InstanceSaid(name, tell))

    # --- what must hold

    def handle(self, event: ServingEvent) -> None:
        for action in self.scheduler.handle(self.cluster.now_ns, event):
            self.seen[type(action).__name__] += 1
            self._act(action)
        self.check()

    def _act(self, action: ServingAction) -> None:
        match action:
            case Answer(tokens):
                self._answered(tokens)
            case AskPixels(request_id, hashes):
                client = self.answers[request_id]
                assert hashes and not client.over and not client.lacking
                client.lacking = hashes
                client.asked += 1
            case QueueAttempt(instance, request, expected):
                self._send(instance, RequestQueued(request, expected))
            case EncodeOn(instance, content_hash, to, pixels_of):
                if pixels_of:
                    live = self.scheduler.live_request(pixels_of)
                    assert live is not None and content_hash in live.pixels, "pixels of a client that has gone"
                self.cluster.post(SERVING, instance, Payload(EncodeAsked(content_hash, to), pixels=bool(pixels_of)))
            case CancelAttempt(instance, attempt):
                self._send(instance, RequestCancelled(attempt))
            case MoveAttempt(instance, attempt, to):
                assert instance != to
                self._send(instance, MoveAsked(attempt, to))
            case SetRoles(instance, roles, reason):
                self._changed(instance, reason)
                self._send(instance, RolesSet(roles))
                if not roles:
                    awake = sum(each.state == "awake" for each in self.scheduler.servers.values())
                    assert awake >= self.scheduler.elasticity.min_instances, "too few instances"
            case SetGroup(instance, _, reason):
                self._changed(instance, reason, "roles" if self.scheduler.elasticity.strict else "group")
            case StartInstance():
                assert not any(each.sleeps for each in self.scheduler.servers.values()), (
                    "one sleeps and another is started"
                )
                self.cluster.starting += 1
                self._not_too_many(1)
            case StopInstance(instance):
                self._without_work(instance)
                self.cluster.stopping.append(instance)
            case SleepInstance(instance):
                self._without_work(instance)
                self._send(instance, SleepAsked())
            case WakeInstance(instance, _, _, roles):
                self._not_too_many(0)
                self._send(instance, WakeAsked(roles))
            case NotifyLost(instance, lost):
                self._send(instance, PeerLost(lost))
            case _:
                pass

    def _without_work(self, name: str) -> None:
        server = self.scheduler.servers[name]
        assert not (server.prompts or server.decodes or server.encoding), (
            "an instance with work is ended or put to sleep"
        )

    def _not_too_many(self, more: int) -> None:
        """With `more` that are not there yet."""
        there = sum(not each.sleeps for each in self.scheduler.servers.values())
        assert there + more <= self.scheduler.elasticity.max_instances, "too many instances"

    def _changed(self, name: str, reason: str, what: str = "roles") -> None:
        """A policy's change comes no sooner than a cool-down after any other; people and losses need not wait."""
        now_ns, cool_down_ns = self.cluster.now_ns, self.scheduler.elasticity.cool_down_ns
        last_ns = self.changed.get((name, what))
        at_once = any(word in reason for word in ("asked for", "may do", "its own instance again", "called back"))
        assert at_once or last_ns in (None, now_ns) or now_ns - last_ns >= cool_down_ns, f"{name} changes to and fro"
        self.changed[name, what] = now_ns

    def _send(self, name: str, event: InstanceEvent) -> None:
        self.cluster.post(SERVING, name, Payload(event))

    def check(self) -> None:
        """Counters are what can be counted; who is live, where, and what is under way fit each other."""
        scheduler, servers = self.scheduler, self.scheduler.servers
        prompts: Counter[str] = Counter()
        decoding: Counter[str] = Counter()
        for live in scheduler._live.values():
            client = self.answers[live.request_id]
            kept = live.kept.tokens if live.kept else ()
            assert not client.over and not client.lacking and tuple(live.told) == client.made + kept
            assert live.owner in servers or not live.owner
            waits = live.request_id in scheduler._homeless or live.request_id in scheduler._line
            assert bool(live.owner) is not waits, "a request is nowhere, or in two places"
            if live.owner:
                (decoding if live.prefilled else prompts)[live.owner] += 1 if live.prefilled else live.charged_tokens
            if live.moving_to:
                assert live.prefilled and live.moving_to in servers and live.moving_to != live.owner
                decoding[live.moving_to] += 1
            client.owner = live.owner
        for client in self.answers.values():
            assert client.over or client.lacking or client.request_id in scheduler._live, "a request was lost"
        encoding: Counter[str] = Counter()
        for (_, to), flight in scheduler._images.flights():
            encoding[flight.encoder] += 1
            assert flight.encoder in servers and to in servers
            assert flight.requests, "images are under way for nobody"
            for request_id in flight.requests:
                assert scheduler._live[request_id].owner == to, "images are under way to where the request is not"
        for name, server in servers.items():
            assert (server.prefill_tokens, server.decoding, server.encoding) == (
                prompts[name], decoding[name], encoding[name],
            ), f"counters of {name}"  # fmt: skip
            assert server.is_up or not (server.roles or server.prompts or server.decodes or server.images), (
                f"{name} is {server.state} and counted on"
            )
            barred = [live for live in server.prompts.values() if live.flights]
            expected = len(barred), sum(each.charged_tokens for each in barred)
            assert (server.barred, server.barred_tokens) == expected, f"barred at {name}"
        for modality in MODALITIES if scheduler.elasticity.strict else ():
            members = scheduler._fleet.serving(modality)
            does = Role(0)
            for member in members:
                does |= member.roles
            missing = stages_of(modality) & ~does
            assert not members or not missing or modality not in self.covered, f"no {missing.letters} for {modality}"
            if members and not missing:
                self.covered.add(modality)
        active: Counter[str] = Counter()
        for each in self.cluster.schedulers.values():
            for key, sequence in each._state.sequences.items():
                active[key] += sequence.phase not in (Phase.ARRIVING, Phase.LEAVING)
        assert all(count <= 1 for count in active.values()), "an attempt runs at two instances"


class ServedCluster(FakeCluster):
    """A fake cluster with the real serving scheduler."""

    serving: RealServing
    tells_status = True
    starting = 0  # instances that were asked for
    stopping: list[str]  # those that are to end
    make_scheduler: Callable[[], ServingScheduler] | None = None
    slow = ""  # an instance whose words reach the serving scheduler only when nothing else can happen

    def pending(self) -> list[tuple[str, str, str]]:
        found = super().pending()
        found = [each for each in found if each[1:] != (SERVING, self.slow)] or found
        if self.serving.scheduler.tick_ns and (found or self.serving.scheduler.live):
            found.append(("tick", "", ""))
        found += [("stop", name, "") for name in self.stopping]
        return found + [("start", "", "")] * bool(self.starting)

    def advance(self, what: str, name: str, source: str, error: str = "") -> None:
        if what == "tick":
            self.now_ns += TICK_NS
            self.serving.handle(Tick())
        elif what == "start":
            self.starting -= 1
            self.join(ALL_ROLES)
        elif what == "stop":
            self.stopping.remove(name)
            if name in self.schedulers:
                self.kill(name, forget=False)
        else:
            super().advance(what, name, source, error)

    def make_serving(self) -> RealServing:
        self.stopping = []
        return RealServing(self)

    def drain(self) -> None:
        super().drain()
        assert not self.serving.scheduler.live
        for server in self.serving.scheduler.servers.values():
            assert not server.prefill_tokens and not server.decoding and not server.encoding
        assert not any(True for _ in self.serving.scheduler._images.flights())
