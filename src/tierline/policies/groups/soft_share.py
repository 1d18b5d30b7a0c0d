"""Groups as preferences: each modality has first call on its share of the instances, and nobody is locked out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tierline.core.fleet_view import FleetView, Proposal
from tierline.core.request import Role
from tierline.core.routing_view import Group
from tierline.core.serving_actions import SetGroup


@dataclass(slots=True)
class SoftShare:
    """Idea: of n instances that are for prompts the whole part of n x a modality's share of the prompts' demand prefers that
    modality, what is left over is shared; where a modality's part is less than `least` instances everything is shared.
    Routing takes an instance of the other group where its own is later by more than a margin, so a share costs nobody a
    stage; where decodes go is not asked of groups, so those who are for decodes are shared.

    Source: ours (design, "What a first study found": groups as soft shares without minima).
    Inputs: demand of prompts and images in instances by modality. Memory: none. Cost: instances.
    `slack`: so much of an instance a share may be off before one changes.
    """

    strict: ClassVar[bool] = False
    least: float = 1.0
    slack: float = 0.6

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        for_prompts = tuple(each for each in view.members if Role.DECODE not in each.roles)
        members = for_prompts or view.members
        count = len(members)
        text, images = (each.encode + each.prefill for each in (view.text, view.multimodal))
        if not count or text + images <= 0:
            return ()
        part = count * text / (text + images)
        parts: dict[Group, float] = {"text": part, "multimodal": count - part}
        if min(parts.values()) < self.least:
            wanted: dict[Group, int] = {"text": 0, "multimodal": 0}
        else:
            wanted = {group: int(size) for group, size in parts.items()}
        have: dict[Group, int] = {group: sum(each.group == group for each in members) for group in parts}
        proposals: list[Proposal] = [
            SetGroup(each.name, "shared", "it is for decodes")
            for each in view.members
            if for_prompts and Role.DECODE in each.roles and each.group != "shared" and not each.group_cooling
        ]
        free = [each for each in members if not each.group_cooling]
        free.sort(key=lambda each: (each.prefill_s + each.encode_s + each.decode_s, each.name))
        reason = f"{part:.1f} of {count} instances is the text's share of the demand"
        for group, size in parts.items():
            if have[group] - size > self.slack or (not wanted[group] and have[group]):
                surplus = [each for each in free if each.group == group]
                proposals += [SetGroup(each.name, "shared", reason) for each in surplus[: have[group] - wanted[group]]]
            elif wanted[group] and size - have[group] > self.slack:
                shared = [each for each in free if each.group == "shared"][: wanted[group] - have[group]]
                proposals += [SetGroup(each.name, group, reason) for each in shared]
                free = [each for each in free if each not in shared]
        return tuple(proposals)
