"""The routing policies: which instance does a stage of a request. One registration point, as for jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tierline.core.routing_view import RoutingPolicy
from tierline.policies import registry

POLICIES: Mapping[str, str] = {
    "least_loaded": "tierline.policies.routing.least_loaded:LeastLoaded",
    "round_robin": "tierline.policies.routing.round_robin:RoundRobin",
}


def make_routing(name: str, options: Mapping[str, Any] | None = None) -> RoutingPolicy:
    """A fresh policy; `options` are its dataclass fields. Raises `UnknownName` or `InvalidInput`."""
    return cast("RoutingPolicy", registry.make("routing policy", POLICIES, name, options))
