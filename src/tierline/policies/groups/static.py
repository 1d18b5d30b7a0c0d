"""Groups as they were laid out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tierline.core.fleet_view import FleetView, Proposal


@dataclass(slots=True)
class StaticGroups:
    """Idea: an instance stays in the group that it began in.

    Source: the static splits that ElasticMM is compared with. Inputs: none. Memory: none. Cost: none.
    """

    strict: ClassVar[bool] = True

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        return ()
