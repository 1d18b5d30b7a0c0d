"""The part of a fleet that serves one modality, and weighted samples of what is in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tierline.core.fleet_view import DecodeView, Demand, FleetView, MemberView, PromptView
from tierline.core.request import Role
from tierline.core.routing_view import MODALITIES, Modality

MOST_PROMPTS = 64  # in a sample, whatever the number of instances


@dataclass(frozen=True, slots=True)
class Part:
    """Members of the modality's group, shared ones included; who of them prefills and who decodes."""

    modality: Modality
    members: tuple[MemberView, ...]
    prefillers: tuple[MemberView, ...]
    decoders: tuple[MemberView, ...]
    demands: tuple[Demand, ...]

    @property
    def encode(self) -> float:
        """Demand of the stage, in instances."""
        return sum(each.encode for each in self.demands)

    @property
    def prefill(self) -> float:
        return sum(each.prefill for each in self.demands)

    @property
    def waiting(self) -> int:
        """Requests in the scheduler's line."""
        return sum(each.waiting for each in self.demands)


def parts_of(view: FleetView, pool: bool) -> tuple[Part, ...]:
    """One for each modality that has members; one of all (as "multimodal", which needs every stage) for a `pool`, or where
    nobody is in a group."""
    if pool or all(each.group == "shared" for each in view.members):
        return (_part("multimodal", view.members, (view.text, view.multimodal)),) if view.members else ()
    parts = (_part(each, view.serving(each), (view.demand(each),)) for each in MODALITIES)
    return tuple(part for part in parts if part.members)


def _part(modality: Modality, members: tuple[MemberView, ...], demands: tuple[Demand, ...]) -> Part:
    return Part(
        modality,
        members,
        tuple(each for each in members if Role.PREFILL in each.roles),
        tuple(each for each in members if Role.DECODE in each.roles),
        demands,
    )


def sampled_prompts(part: Part) -> list[tuple[PromptView, float]]:
    """R_p: who waits at the instances and in the scheduler, each with the number that it stands for."""
    found: list[tuple[PromptView, float]] = []
    for each in part.members:
        found += [(prompt, each.prompts / len(each.queue)) for prompt in each.queue]
    for demand in part.demands:
        found += [(prompt, demand.waiting / len(demand.queue)) for prompt in demand.queue]
    step = -(-len(found) // MOST_PROMPTS)
    return [(prompt, weight * step) for prompt, weight in found[::step]] if step > 1 else found


def sampled_decodes(members: Sequence[MemberView]) -> list[tuple[DecodeView, float]]:
    """B_d, in the same way."""
    found: list[tuple[DecodeView, float]] = []
    for each in members:
        found += [(decode, each.decoding / len(each.decodes)) for decode in each.decodes]
    return found
