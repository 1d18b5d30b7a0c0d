"""As many instances as there were at the start."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.fleet_view import FleetView, Proposal


@dataclass(slots=True)
class FixedScale:
    """Idea: nobody comes and nobody goes, but by failures.

    Source: a deployment with its own devices. Inputs: none. Memory: none. Cost: none.
    """

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        return ()
