"""What group, stage and scale policies see at a tick, and what they propose. Nothing in here tells how long an answer will
be: `remaining_tokens` are predicted from answers that have ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol

from tierline.core.request import Role
from tierline.core.routing_view import Group, Modality
from tierline.core.serving_actions import (
    SetGroup,
    SetRoles,
    SleepInstance,
    StartInstance,
    StopInstance,
    WakeInstance,
)
from tierline.core.slo import Slo


@dataclass(frozen=True, slots=True)
class PromptView:
    """A request whose prompt is not done. `prefill_s`: predicted for it alone; `waited_s`: since it was submitted."""

    request_id: str
    modality: Modality
    input_tokens: int
    prefill_s: float
    waited_s: float


@dataclass(frozen=True, slots=True)
class DecodeView:
    """A sequence past its prompt. `context_tokens` have KV; `output_tokens` were made; `remaining_tokens` are predicted."""

    request_id: str
    context_tokens: int
    output_tokens: int
    remaining_tokens: float


@dataclass(frozen=True, slots=True)
class MemberView:
    """One instance. Counts as in `InstanceView`. `cooling`: its roles changed so lately that they may not change again,
    `group_cooling`: its group; where groups are strict both begin with either change. `held`: sequences there that wait for
    an instance that decodes. `queue` and `decodes` are samples, oldest first, of its `prompts` and its `decoding` sequences:
    each stands for `prompts / len(queue)`, `decoding / len(decodes)` of them."""

    name: str
    group: Group
    roles: Role
    cooling: bool
    prompts: int
    prefill_tokens: int
    prefill_s: float
    encoding: int
    encode_s: float
    decoding: int
    held: int
    context_tokens: int
    decode_s: float
    free_blocks: int
    total_blocks: int
    queue: tuple[PromptView, ...] = ()
    decodes: tuple[DecodeView, ...] = ()
    group_cooling: bool = False

    @property
    def idle(self) -> bool:
        return not (self.prompts or self.encoding or self.decoding)

    @property
    def kv_share(self) -> float:
        """Share of its KV blocks that is in use, 0 to 1; 0 before it has told."""
        return 1 - self.free_blocks / self.total_blocks if self.total_blocks else 0.0


@dataclass(frozen=True, slots=True)
class SleeperView:
    """An instance that sleeps, or that will when it has nothing to do any more. `since_ns`: when that began."""

    name: str
    group: Group
    since_ns: int


@dataclass(frozen=True, slots=True)
class Demand:
    """What one modality asks for, averaged over the last while, in instances (instance-seconds per second), by stage.
    `rate`: requests per second. `waiting`: requests that wait in the scheduler for room, or for somebody who may do their
    next stage; `waiting_s` the prefill and encode seconds of these; `queue` is a sample of the former, in their order."""

    modality: Modality
    rate: float = 0.0
    encode: float = 0.0
    prefill: float = 0.0
    decode: float = 0.0
    waiting: int = 0
    waiting_s: float = 0.0
    queue: tuple[PromptView, ...] = ()

    @property
    def instances(self) -> float:
        return self.encode + self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class FleetView:
    """The deployment at a moment. `members` in order of joining; `sleeping` are none. `starting`: instances asked for that
    have not joined, and those being woken. `mean_tpot_s`: mean time between tokens of answers that ended lately (0 = none
    has)."""

    now_ns: int
    members: tuple[MemberView, ...]
    text: Demand
    multimodal: Demand
    slo: Slo
    starting: int = 0
    sleeping: tuple[SleeperView, ...] = ()
    min_instances: int = 1
    max_instances: int = 0
    mean_tpot_s: float = 0.0

    def demand(self, modality: Modality) -> Demand:
        return self.text if modality == "text" else self.multimodal

    def serving(self, modality: Modality) -> tuple[MemberView, ...]:
        """Members of a modality's group and shared ones."""
        return tuple(member for member in self.members if member.group in (modality, "shared"))


def stages_of(modality: Modality) -> Role:
    """The stages that a modality needs: text has nothing to encode."""
    stages = Role.PREFILL | Role.DECODE
    return stages | Role.ENCODE if modality == "multimodal" else stages


@dataclass(frozen=True, slots=True)
class MoveRequest:
    """A request shall go on decoding at instance `to`."""

    request_id: str
    to: str
    reason: str


Proposal = SetRoles | SetGroup | MoveRequest | StartInstance | StopInstance | SleepInstance | WakeInstance


class GroupPolicy(Protocol):
    """Says which modality an instance serves. Pure but for its own declared memory. `strict`: a group serves its modality
    alone as long as it can, so it keeps every stage that it needs; else a group is a preference."""

    strict: ClassVar[bool]

    def propose(self, view: FleetView) -> tuple[Proposal, ...]: ...


class StagePolicy(Protocol):
    """Says which stages an instance does, and which requests move. Pure but for its own declared memory."""

    def propose(self, view: FleetView) -> tuple[Proposal, ...]: ...


class ScalePolicy(Protocol):
    """Says when an instance is started, put to sleep, woken or stopped. Pure but for its own declared memory."""

    def propose(self, view: FleetView) -> tuple[Proposal, ...]: ...
