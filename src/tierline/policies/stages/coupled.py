"""Everybody does everything."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.fleet_view import FleetView, Proposal
from tierline.core.request import ALL_ROLES
from tierline.core.serving_actions import SetRoles


@dataclass(slots=True)
class CoupledStages:
    """Idea: each instance encodes, prefills and decodes what comes to it, so nothing moves between instances.

    Source: vLLM and every engine before disaggregation. Inputs: roles. Memory: none. Cost: instances.
    """

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        return tuple(
            SetRoles(each.name, ALL_ROLES, "every instance does every stage")
            for each in view.members
            if each.roles != ALL_ROLES and not each.cooling
        )
