"""The routing policies: which instance does a stage of a request. One registration point, as for jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tierline.core.routing_view import RoutingPolicy
from tierline.core.slo import Slo
from tierline.core.stage_times import StageTimes
from tierline.perf.serving_demand import StageRates
from tierline.policies import registry

POLICIES: Mapping[str, str] = {
    "least_loaded": "tierline.policies.routing.least_loaded:LeastLoaded",
    "round_robin": "tierline.policies.routing.round_robin:RoundRobin",
    "prefix_affinity": "tierline.policies.routing.prefix_affinity:PrefixAffinity",
    "emp": "tierline.policies.routing.emp:Emp",
    "late_binding": "tierline.policies.routing.late_binding:LateBinding",
}


def make_routing(
    name: str, options: Mapping[str, Any] | None = None, times: StageTimes | None = None, slo: Slo | None = None
) -> RoutingPolicy:
    """A fresh policy; `options` are its dataclass fields, `times` (as linear rates) and `slo` go to those that predict.
    Raises `UnknownName` or `InvalidInput`."""
    offered = {"rates": StageRates.of(times) if times is not None else None, "slo": slo}
    return cast("RoutingPolicy", registry.make("routing policy", POLICIES, name, options, offered))
