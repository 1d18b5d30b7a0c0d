"""The stage policies: which stages an instance does. One registration point, as for jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tierline.core.fleet_view import StagePolicy
from tierline.core.stage_times import StageTimes
from tierline.perf.serving_demand import StageRates
from tierline.policies import registry

POLICIES: Mapping[str, str] = {
    "enough_decoders": "tierline.policies.stages.enough_decoders:EnoughDecoders",
    "gain_cost": "tierline.policies.stages.gain_cost:GainCost",
    "paper": "tierline.policies.stages.paper:PaperStages",
    "thresholds": "tierline.policies.stages.thresholds:Thresholds",
    "static": "tierline.policies.stages.static:StaticStages",
    "coupled": "tierline.policies.stages.coupled:CoupledStages",
}


def make_stages(name: str, options: Mapping[str, Any] | None = None, times: StageTimes | None = None) -> StagePolicy:
    """A fresh policy; `options` are its dataclass fields, `times` (as linear rates) go to those that predict. Raises
    `UnknownName` or `InvalidInput`."""
    offered = {"rates": StageRates.of(times) if times is not None else None}
    return cast("StagePolicy", registry.make("stage policy", POLICIES, name, options, offered))
