"""The scale policies: how many instances there are. One registration point, as for jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tierline.core.fleet_view import ScalePolicy
from tierline.policies import registry

POLICIES: Mapping[str, str] = {
    "fixed": "tierline.policies.scale.fixed:FixedScale",
    "demand": "tierline.policies.scale.demand:DemandScale",
}


def make_scale(name: str, options: Mapping[str, Any] | None = None) -> ScalePolicy:
    """A fresh policy; `options` are its dataclass fields. Raises `UnknownName` or `InvalidInput`."""
    return cast("ScalePolicy", registry.make("scale policy", POLICIES, name, options))
