"""Stages as they were laid out."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.fleet_view import FleetView, Proposal


@dataclass(slots=True)
class StaticStages:
    """Idea: an instance does the stages that it began with.

    Source: DistServe's and vLLM's static disaggregation. Inputs: none. Memory: none. Cost: none.
    """

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        return ()
