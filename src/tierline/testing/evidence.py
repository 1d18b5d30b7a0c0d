"""What really happened among the instances of a test, seen from the outside: which bytes travelled and where they ended up,
who computed which sequence, which stages an instance ran. Nothing here believes a report.

`Watched` is the real scheduler with a witness at its side. The witness looks at what goes in and comes out, and reads the
arenas itself; what contradicts is kept in `problems`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from tierline.core.batch_view import BatchPolicy
from tierline.core.instance_actions import (
    AcceptMove,
    AddSequence,
    Chunk,
    ConfirmMove,
    DropSequence,
    EncodeImage,
    ImportRound,
    InstanceAction,
    RunStep,
    SendRound,
    TellMoved,
)
from tierline.core.instance_events import EmbeddingsArrived, InstanceEvent, RolesSet, RoundArrived, StepEnded
from tierline.core.request import Role
from tierline.engine.arena import KvArena
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_state import InstanceLimits

POISON = 77.0  # what lies in blocks before KV arrives there


@dataclass(slots=True)
class Witness:
    """`counts`: how often what happened; `makers` [attempt]: the instance that drew each of its tokens, in order."""

    arenas: dict[str, KvArena] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    makers: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    moved: set[str] = field(default_factory=set)  # attempts that went on elsewhere, by the arrival of their last KV
    roles: dict[str, Role] = field(default_factory=dict)
    _gained: dict[str, Role] = field(default_factory=dict)  # roles given and not yet seen in a batch
    _owner: dict[str, str] = field(default_factory=dict)
    _decoding: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _arrived: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _admitted: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    _sent: dict[tuple[str, str, int, int], torch.Tensor] = field(default_factory=dict)
    _imported: dict[str, tuple[ImportRound, torch.Tensor] | None] = field(default_factory=dict)
    _travelled: dict[tuple[str, str], torch.Tensor] = field(default_factory=dict)  # embeddings under way

    # --- what schedulers were told and said

    def handled(self, name: str, event: InstanceEvent, actions: Sequence[InstanceAction]) -> None:
        """`name` was told `event` and wants `actions`, none of which has been done yet."""
        if isinstance(event, RolesSet):
            self._gained[name] = event.roles & ~self.roles[name] | self._gained.get(name, Role(0)) & event.roles
            self.roles[name] = event.roles
            self.counts["roles set"] += 1
        elif isinstance(event, StepEnded):
            for attempt, _ in event.sampled:
                self.makers[attempt].append(name)
                self._decoding[name].add(attempt)
        for action in actions:
            match action:
                case AddSequence():
                    self._owner.setdefault(action.request.request_id, name)
                case RunStep():
                    for chunk in action.chunks:
                        self._chunk(name, chunk)
                case EncodeImage():
                    self._ran(name, Role.ENCODE)
                case SendRound():
                    key = (name, action.request_id, action.first, action.until)
                    self._sent[key] = self.bytes_of(name, action.blocks)
                case ImportRound():
                    before = self.bytes_of(name, action.blocks)
                    self._imported[name] = (action, before)
                    poison = torch.full_like(before.view(self.arenas[name].keys.dtype), POISON)
                    KvArena.load(self.arenas[name], action.blocks, poison.view(torch.uint8))
                case ConfirmMove():
                    self._owner[action.request_id] = name
                    self._decoding[name].add(action.request_id)
                    self._arrived[name].add(action.request_id)
                    self.moved.add(action.request_id)
                    self.counts["moves"] += 1
                case AcceptMove():
                    self.counts["cached positions of moves"] += action.cached_tokens
                case TellMoved():
                    if self._owner.get(action.request_id) != name or action.request_id not in self._arrived[name]:
                        self.problems.append(f"{name} says that {action.request_id} has come, and it has not")
                case DropSequence():
                    self._decoding[name].discard(action.request_id)
                    self._admitted[name].discard(action.request_id)
                case _:
                    pass

    def _chunk(self, name: str, chunk: Chunk) -> None:
        attempt = chunk.request_id
        if self._owner.get(attempt) != name:
            self.problems.append(f"{name} computes {attempt}, which is at {self._owner.get(attempt)}")
        again = chunk.fresh and attempt not in self._arrived[name]  # begun, or begun again after a preemption
        decode = attempt in self._decoding[name] and chunk.samples and chunk.tokens == 1 and not again
        self._arrived[name].discard(attempt)
        if decode:
            if Role.DECODE not in self.roles[name]:
                self.problems.append(f"{name} decodes {attempt}, which its roles {self.roles[name].letters} forbid")
            self._ran(name, Role.DECODE)
            return
        if again and Role.PREFILL not in self.roles[name]:
            self.problems.append(f"{name} begins {attempt}, which its roles {self.roles[name].letters} forbid")
        if again:
            self.counts["begun"] += 1
            self.counts["preempted"] += attempt in self._admitted[name]
            self._admitted[name].add(attempt)
        self._ran(name, Role.PREFILL)

    def _ran(self, name: str, role: Role) -> None:
        self.counts[f"ran {role.letters}"] += 1
        if role & self._gained.get(name, Role(0)):
            self._gained[name] &= ~role
            self.counts[f"gained {role.letters}"] += 1

    # --- what travelled

    def sent(self, source: str, event: InstanceEvent, payload: torch.Tensor | None) -> None:
        """`source` has put this on its way."""
        if isinstance(event, RoundArrived):
            expected = self._sent.pop((source, event.request_id, event.first, event.until))
            if payload is None or not torch.equal(payload, expected):
                self.problems.append(f"KV of {event.request_id} is not what lies in the arena of {source}")
            self._sent[source, event.request_id, event.first, event.until] = expected
        elif isinstance(event, EmbeddingsArrived):
            assert payload is not None
            self._travelled[source, event.content_hash] = payload.clone()
            self.counts["embeddings sent"] += 1

    def delivered(self, source: str, target: str, event: InstanceEvent) -> None:
        """`target` has taken this."""
        if not isinstance(event, RoundArrived):
            return
        imported = self._imported.pop(target, None)
        expected = self._sent.pop((source, event.request_id, event.first, event.until))
        if imported is None:
            return  # it was given up meanwhile
        action, before = imported
        after = self.bytes_of(target, action.blocks)
        if not torch.equal(after, expected):
            self.problems.append(f"KV of {event.request_id} in {target} is not what lay in {source}")
        self.counts["rounds"] += 1
        self.counts["rounds before the last"] += not event.final
        self.counts["KV bytes"] += expected.numel()
        self.counts["rounds that changed the target"] += not torch.equal(before, expected)

    def bytes_of(self, name: str, blocks: Sequence[int]) -> torch.Tensor:
        """What lies in these blocks, read by the real arena's code, whatever a test has put in its place."""
        return KvArena.export(self.arenas[name], blocks).clone()


class Watched(InstanceScheduler):
    """The real scheduler; a witness sees every event and every action."""

    def __init__(self, name: str, limits: InstanceLimits, policy: BatchPolicy, roles: Role, witness: Witness) -> None:
        super().__init__(name, limits, policy, roles)
        self._own_name = name
        self._witness = witness

    def handle(self, now_ns: int, event: InstanceEvent) -> list[InstanceAction]:
        actions = super().handle(now_ns, event)
        self._witness.handled(self._own_name, event, actions)
        return actions
