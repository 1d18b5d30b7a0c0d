"""Instances to the groups so that the one that can bear least bears most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tierline.core.fleet_view import FleetView, MemberView, Proposal, stages_of
from tierline.core.request import ALL_ROLES, Role
from tierline.core.routing_view import MODALITIES, Modality
from tierline.core.serving_actions import SetGroup, SetRoles
from tierline.perf.serving_demand import burst_tolerance, share_out


@dataclass(slots=True)
class BurstToleranceGroups:
    """Idea: each group keeps `least` instances; every other one goes to the group whose burst tolerance is lowest, so that
    the minimum is greatest. One instance moves at a time, the one with least to do of the group that gives, and only where
    the minimum grows by more than the margin. Shared instances are left alone: they serve both.

    Source: ElasticMM (NeurIPS 2025), section 3.1, equation 1, after SHEPHERD (NSDI 2023).
    Inputs: demand in instances and who waits, by modality; load of the members. Memory: none. Cost: instances.
    `margin`: by so much the least burst tolerance must grow. `waiting_weight`: how much of the seconds that wait in the line
    is added to the demand (reactive), per second.
    """

    strict: ClassVar[bool] = True
    margin: float = 0.15
    least: int = 1
    waiting_weight: float = 0.25

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        members = {each: [member for member in view.members if member.group == each] for each in MODALITIES}
        count = sum(map(len, members.values()))
        if count < 2 * self.least or not all(members.values()):
            return ()
        demand = {
            each: view.demand(each).instances + self.waiting_weight * view.demand(each).waiting_s for each in MODALITIES
        }
        if not any(demand.values()):
            return ()
        wanted = share_out(count - 2 * self.least, dict.fromkeys(MODALITIES, self.least), demand)
        gives, takes = sorted(MODALITIES, key=lambda each: wanted[each] - len(members[each]))
        if wanted[takes] <= len(members[takes]):
            return ()
        now = min(burst_tolerance(len(members[each]), demand[each]) for each in MODALITIES)
        then = min(
            burst_tolerance(len(members[gives]) - 1, demand[gives]),
            burst_tolerance(len(members[takes]) + 1, demand[takes]),
        )
        if then <= now * (1 + self.margin):
            return ()
        return self._move(view, members[gives], gives, takes, now, then)

    def _move(
        self, view: FleetView, members: list[MemberView], gives: Modality, takes: Modality, now: float, then: float
    ) -> tuple[Proposal, ...]:
        """The member with least to do whose stages the others do too, with a role that its new group needs."""
        able = [each for each in members if not (each.cooling or each.group_cooling) and not _alone(view, each, gives)]
        if not able:
            return ()
        member = min(able, key=lambda each: (each.prefill_s + each.encode_s + each.decode_s, each.name))
        reason = f"burst tolerance: the least grows from {now:.2f} to {then:.2f} instances per instance of demand"
        group = SetGroup(member.name, takes, reason)
        roles = _needed_role(view, takes)
        if member.roles == roles or member.roles == ALL_ROLES:
            return (group,)
        return group, SetRoles(member.name, roles, f"the {takes} group needs {roles.letters} most")


def _alone(view: FleetView, member: MemberView, modality: Modality) -> bool:
    """Whether nobody else of the group does one of its stages."""
    others = Role(0)
    for each in view.serving(modality):
        if each is not member:
            others |= each.roles
    return bool(stages_of(modality) & member.roles & ~others)


def _needed_role(view: FleetView, modality: Modality) -> Role:
    """The stage with most demand per instance that does it."""
    demand, group = view.demand(modality), view.serving(modality)
    wanted = {Role.ENCODE: demand.encode, Role.PREFILL: demand.prefill, Role.DECODE: demand.decode}
    stages = [role for role in Role if role in stages_of(modality)]
    return max(stages, key=lambda role: wanted[role] / max(0.5, sum(role in each.roles for each in group)))
