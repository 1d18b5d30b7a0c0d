"""Several real instances in one process: their messages in memory, first in first out between any two of them, payloads
copied. Which message is delivered, which instance computes and what is disturbed next is drawn from a seed.

`LAYOUTS` name the roles of the instances; a small static coordinator stands in for the serving scheduler.
"""

from __future__ import annotations

import random
import threading
from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from msgspec import structs

from tierline.core.instance_actions import (
    Tell,
    TellImagesNeeded,
    TellMoved,
    TellMoveFailed,
    TellPrefilled,
    TellReturned,
    TellTokens,
)
from tierline.core.instance_events import EncodeAsked, InstanceEvent, MoveAsked, RequestQueued, RolesSet
from tierline.core.request import FinishReason, Picture, Request, Role, TokenLogprob
from tierline.engine.arena import KvArena
from tierline.engine.encoder import EncoderLane
from tierline.engine.families.text import TextFamily
from tierline.engine.instance import Instance
from tierline.engine.model import end_tokens, kv_shape
from tierline.engine.runner import ModelRunner
from tierline.policies.batching import make_batching
from tierline.schedulers.instance_state import InstanceLimits
from tierline.testing.evidence import Watched, Witness

LAYOUTS: Mapping[str, tuple[str, ...]] = {
    "alone": ("EPD",),
    "EPD": ("EPD", "EPD"),
    "P|D": ("EP", "EP", "D", "D"),
    "E|PD": ("E", "E", "PD", "PD"),
    "E|P|D": ("E", "E", "P", "P", "D", "D"),
}
COORDINATOR = ""
MOST_TURNS = 200_000


@dataclass(frozen=True, slots=True)
class Disturbance:
    """How likely, each turn, a running sequence is moved, an instance's roles change, the next request comes."""

    move: float = 0.0
    roles: float = 0.0
    arrival: float = 0.2


@dataclass(slots=True)
class Progress:
    """A request under way. `made` [index] is a token and who told it; they may arrive in any order, since an attempt's
    instances speak for themselves."""

    request: Request
    attempt: str
    owner: str
    tries: int = 1
    made: dict[int, tuple[int, str]] | None = None
    length: int | None = None
    finish: FinishReason | None = None
    reason: str = ""

    @property
    def done(self) -> bool:
        return self.length is not None and self.made is not None and len(self.made) == self.length


class LanePort:
    """An instance's way to the others."""

    def __init__(self, name: str, cluster: Cluster) -> None:
        self._name = name
        self._cluster = cluster

    def send(self, peer: str, event: InstanceEvent, payload: torch.Tensor | None) -> None:
        self._cluster.sent(self._name, peer, event, payload)

    def tell(self, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        self._cluster.tells[self._name].append((message, logprobs))


class Cluster:
    """`families`: one loaded model an instance (as in processes of their own, nothing is shared). `run` may be called
    again: the caches are warm then. Subclasses break something on purpose."""

    def __init__(
        self,
        families: Sequence[TextFamily],
        layout: str,
        limits: InstanceLimits,
        *,
        seed: int = 0,
        policy: str = "sarathi",
    ) -> None:
        self.rng = random.Random(seed)
        self.witness = Witness()
        self.instances: dict[str, Instance] = {}
        self.schedulers: dict[str, Watched] = {}
        self.tells: dict[str, deque[tuple[Tell, tuple[TokenLogprob, ...]]]] = {}
        self.logprobs: dict[str, dict[int, TokenLogprob]] = defaultdict(dict)
        self._links: dict[tuple[str, str], deque[tuple[InstanceEvent, torch.Tensor | None]]] = {}
        self._encoded: dict[str, threading.Semaphore] = {}
        self._roles: dict[str, Role] = {}  # as given; an instance may not know yet
        self._progress: dict[str, Progress] = {}
        self._of_attempt: dict[str, str] = {}
        self._pictures: dict[str, Picture] = {}
        self._parked: list[MoveAsked] = []
        self._needs = Role(0)
        for number, letters in enumerate(LAYOUTS[layout]):
            self._start(f"i{number}", families[number], Role.parse(letters), limits, policy)
        self._static = dict(self._roles)

    def _start(self, name: str, family: TextFamily, roles: Role, limits: InstanceLimits, policy: str) -> None:
        if not family.takes_images:
            roles &= ~Role.ENCODE
        self._roles[name] = self.witness.roles[name] = roles
        self._needs |= roles
        shape = kv_shape(family.config)
        weight = family.embedding.weight
        arena = self.make_arena(
            shape.layers,
            limits.blocks,
            limits.block_tokens,
            shape.kv_heads,
            shape.head_dim,
            weight.dtype,
            weight.device,
        )
        ends = end_tokens(family.folder, family.config)
        limits = replace(limits, end_tokens=frozenset(ends))
        scheduler = self.make_scheduler(name, limits, policy, roles)
        embeddings: dict[str, torch.Tensor] = {}
        self._encoded[name] = threading.Semaphore(0)
        lane = EncoderLane(family, self._encoded[name].release)
        runner = ModelRunner(family, arena, ends, embeddings)
        self.witness.arenas[name] = arena
        self.schedulers[name] = scheduler
        self.tells[name] = deque()
        self.instances[name] = Instance(name, scheduler, runner, arena, lane, embeddings, LanePort(name, self))

    # --- what a test may break

    def make_arena(
        self,
        layers: int,
        blocks: int,
        block: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> KvArena:
        return KvArena(layers, blocks, block, kv_heads, head_dim, dtype, device)

    def make_scheduler(self, name: str, limits: InstanceLimits, policy: str, roles: Role) -> Watched:
        return Watched(name, limits, make_batching(policy), roles, self.witness)

    def carry(self, event: InstanceEvent, payload: torch.Tensor) -> torch.Tensor:
        """What arrives of a payload."""
        return payload.clone()

    # --- running

    def run(
        self, requests: Sequence[Request], pictures: Mapping[str, Picture], disturbance: Disturbance = Disturbance()
    ) -> dict[str, tuple[int, ...]]:
        """All answers. Requests come one by one, at random moments."""
        self._pictures.update(pictures)
        waiting = deque(requests)
        for _ in range(MOST_TURNS):
            if disturbance.move and self.rng.random() < disturbance.move:
                self._force_move()
            if disturbance.roles and self.rng.random() < disturbance.roles:
                self._change_roles()
            if waiting and self.rng.random() < disturbance.arrival:
                self._submit(waiting.popleft())
            elif not self._turn() and not waiting:
                break
        left = [each for each in self._progress.values() if not each.done]
        assert not left, f"{len(left)} requests were never finished: {left[0]}; {self.statuses()}"
        return {each.request_id: self.answer(each.request_id) for each in requests}

    def settle(self) -> None:
        """Give all instances their first roles back."""
        for name, roles in self._static.items():
            self._set_roles(name, roles)
        while self._turn():
            pass

    def close(self) -> None:
        for instance in self.instances.values():
            instance.close()

    def answer(self, request_id: str) -> tuple[int, ...]:
        made = self._progress[request_id].made or {}
        return tuple(made[index][0] for index in sorted(made))

    def finish(self, request_id: str) -> tuple[FinishReason | None, str]:
        progress = self._progress[request_id]
        return progress.finish, progress.reason

    def tellers(self, request_id: str) -> list[str]:
        """Who told each token."""
        made = self._progress[request_id].made or {}
        return [made[index][1] for index in sorted(made)]

    def makers(self, request_id: str) -> list[str]:
        """Who drew each token, by what the witness saw."""
        attempts = [attempt for attempt, of in self._of_attempt.items() if of == request_id]
        return [name for attempt in attempts for name in self.witness.makers[attempt]]

    def faults(self, wanted: Mapping[str, tuple[int, ...]]) -> list[str]:
        """What is wrong with the answers, and with how they came about. To be asked when all is done and settled."""
        found = list(self.witness.problems)
        for request_id, tokens in wanted.items():
            if self.answer(request_id) != tokens:
                found.append(f"{request_id} should be {tokens} and is {self.answer(request_id)}")
            if self.tellers(request_id) != self.makers(request_id):
                found.append(
                    f"{request_id} was told by {self.tellers(request_id)} and made by {self.makers(request_id)}"
                )
        for name, scheduler in self.schedulers.items():
            status = scheduler.status()
            if status.free_blocks != status.total_blocks or status.running or status.waiting or status.held:
                found.append(f"{name} should be empty: {status}")
        return found

    def statuses(self) -> str:
        return "; ".join(f"{name} {each.roles.letters} {each.status()}" for name, each in self.schedulers.items())

    def sent(self, source: str, peer: str, event: InstanceEvent, payload: torch.Tensor | None) -> None:
        self.witness.sent(source, event, payload)
        arriving = None if payload is None else self.carry(event, payload)
        self._links.setdefault((source, peer), deque()).append((event, arriving))

    def _turn(self) -> bool:
        """Do one of the things that can be done; False when there is none."""
        links = [link for link, messages in self._links.items() if messages]
        told = [name for name, messages in self.tells.items() if messages]
        steps = [name for name, instance in self.instances.items() if instance.has_step]
        if (links or told) and self.rng.random() < 0.85:
            steps = []  # else most of a short answer is made before a message is read
        lanes = [name for name, scheduler in self.schedulers.items() if scheduler.status().encoding]
        count = len(links) + len(told) + len(steps) + len(lanes) + bool(self._parked)
        if not count:
            return False
        at = self.rng.randrange(count)
        for place, names in enumerate((told, steps, lanes)):
            if at < len(names):
                (self._hear, self._step, self._collect)[place](names[at])
                return True
            at -= len(names)
        if at < len(links):
            self._deliver(*links[at])
        else:
            self._retry()
        return True

    def _step(self, name: str) -> None:
        self.instances[name].step()

    def _collect(self, name: str) -> None:
        assert self._encoded[name].acquire(timeout=60), f"the encoder of {name} stands still"
        self.instances[name].collect()

    def _deliver(self, source: str, target: str) -> None:
        event, payload = self._links[source, target].popleft()
        picture = self._pictures[event.content_hash] if isinstance(event, EncodeAsked) else None
        self.instances[target].deliver(event, payload, picture)
        self.witness.delivered(source, target, event)

    # --- the coordinator

    def _send(self, target: str, event: InstanceEvent) -> None:
        self._links.setdefault((COORDINATOR, target), deque()).append((event, None))

    def _able(self, role: Role, but: str = COORDINATOR) -> str:
        """An instance that may do `role`, another one than `but` where there is one."""
        able = [name for name, roles in self._roles.items() if role in roles]
        return self.rng.choice([name for name in able if name != but] or able)

    def _submit(self, request: Request) -> None:
        progress = self._progress.get(request.request_id)
        if progress is None:
            progress = self._progress[request.request_id] = Progress(request, "", "", 0, {})
        progress.tries += 1
        progress.attempt = f"{request.request_id}#{progress.tries}"
        progress.owner = self._able(Role.PREFILL)
        self._of_attempt[progress.attempt] = request.request_id
        expected: tuple[str, ...] = ()
        if self.rng.random() < 0.5:  # else the instance asks for them
            expected = tuple(dict.fromkeys(image.content_hash for image in request.images))
            for content_hash in expected:
                self._ask_encode(content_hash, progress.owner)
        self._send(progress.owner, RequestQueued(structs.replace(request, request_id=progress.attempt), expected))

    def _ask_encode(self, content_hash: str, to: str) -> None:
        own = Role.ENCODE in self._roles[to] and self.rng.random() < 0.7
        self._send(to if own else self._able(Role.ENCODE), EncodeAsked(content_hash, to))

    def _hear(self, name: str) -> None:
        message, logprobs = self.tells[name].popleft()
        match message:
            case TellTokens():
                self._tokens(name, message, logprobs)
            case TellImagesNeeded():
                for content_hash in message.hashes:
                    self._ask_encode(content_hash, name)
            case TellPrefilled():
                self._parked.append(MoveAsked(message.request_id, COORDINATOR))
            case TellReturned():
                progress = self._progress[self._of_attempt[message.request_id]]
                if message.request_id == progress.attempt:
                    self._submit(structs.replace(progress.request, made=message.made))
            case TellMoved():
                progress = self._progress[self._of_attempt[message.request_id]]
                if message.request_id == progress.attempt:
                    progress.owner = name
            case TellMoveFailed():
                self._parked.append(MoveAsked(message.request_id, COORDINATOR))
            case _:
                pass

    def _tokens(self, name: str, message: TellTokens, logprobs: tuple[TokenLogprob, ...]) -> None:
        request_id = self._of_attempt[message.request_id]
        progress = self._progress[request_id]
        assert progress.made is not None
        for place, token in enumerate(message.tokens):
            known = progress.made.setdefault(message.first + place, (token, name))
            if known[0] != token:
                self.witness.problems.append(
                    f"token {message.first + place} of {request_id} was {known[0]}, then {token}"
                )
            if logprobs:
                self.logprobs[request_id][message.first + place] = logprobs[place]
        if message.finish:
            progress.length = message.first + len(message.tokens)
            progress.finish, progress.reason = message.finish, message.reason

    def _retry(self) -> None:
        asked = self._parked.pop(self.rng.randrange(len(self._parked)))
        progress = self._progress[self._of_attempt[asked.request_id]]
        if not progress.done and progress.attempt == asked.request_id:
            self._send(progress.owner, MoveAsked(asked.request_id, self._able(Role.DECODE, progress.owner)))

    # --- disturbances

    def _force_move(self) -> None:
        under_way = [each for each in self._progress.values() if each.made and not each.done]
        if under_way:
            progress = self.rng.choice(under_way)
            self._send(progress.owner, MoveAsked(progress.attempt, self._able(Role.DECODE, progress.owner)))

    def _change_roles(self) -> None:
        """Another set of roles for some instance, so that every stage stays with somebody."""
        name = self.rng.choice(list(self._roles))
        choices = [Role(bits) for bits in range(1, 8) if not Role(bits) & ~self._needs and bits != self._roles[name]]
        others = Role(0)
        for other, roles in self._roles.items():
            others |= roles if other != name else Role(0)
        choices = [roles for roles in choices if others | roles == self._needs]
        if choices:
            self._set_roles(name, self.rng.choice(choices))

    def _set_roles(self, name: str, roles: Role) -> None:
        if roles != self._roles[name]:
            self._roles[name] = roles
            self._send(name, RolesSet(roles))
