"""The group policies: which modality an instance serves. One registration point, as for jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tierline.core.fleet_view import GroupPolicy
from tierline.policies import registry

POLICIES: Mapping[str, str] = {
    "burst_tolerance": "tierline.policies.groups.burst_tolerance:BurstToleranceGroups",
    "soft_share": "tierline.policies.groups.soft_share:SoftShare",
    "static": "tierline.policies.groups.static:StaticGroups",
}


def make_groups(name: str, options: Mapping[str, Any] | None = None) -> GroupPolicy:
    """A fresh policy; `options` are its dataclass fields. Raises `UnknownName` or `InvalidInput`."""
    return cast("GroupPolicy", registry.make("group policy", POLICIES, name, options))
