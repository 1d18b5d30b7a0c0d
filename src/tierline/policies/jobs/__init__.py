"""The job policies. This mapping is their one registration point: CLI, config, docs and contract tests read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tierline.core.contracts import JobPolicy
from tierline.policies import registry

POLICIES: Mapping[str, str] = {
    "explsched": "tierline.policies.jobs.explsched:ExplSched",
    "fifo": "tierline.policies.jobs.fifo:FirstInFirstOut",
    "fair": "tierline.policies.jobs.fair:FairTimeSlicing",
    "las": "tierline.policies.jobs.las:LeastAttainedService",
    "slaq": "tierline.policies.jobs.slaq:Slaq",
    "gandiva": "tierline.policies.jobs.gandiva:Gandiva",
    "oasis": "tierline.policies.jobs.oasis:Oasis",
    "asha": "tierline.policies.jobs.asha:Asha",
    "srtf": "tierline.policies.jobs.srtf:ShortestRemainingTimeFirst",
    "optimus": "tierline.policies.jobs.optimus:Optimus",
    "clairvoyant": "tierline.policies.jobs.clairvoyant:Clairvoyant",
}

SEES_THE_FUTURE = frozenset({"clairvoyant"})


def policy_class(name: str) -> type[JobPolicy]:
    """The class of a registered policy, or of `module:Class` given by a user; raises `UnknownName`."""
    return cast("type[JobPolicy]", registry.policy_class("policy", POLICIES, name))


def make_policy(name: str, options: Mapping[str, Any] | None = None) -> JobPolicy:
    """A fresh policy; `options` are its dataclass fields. Raises `UnknownName` or `InvalidInput`."""
    return cast("JobPolicy", registry.make("policy", POLICIES, name, options))
