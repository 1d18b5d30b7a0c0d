"""The batching policies: what an instance computes in its next iteration. One registration point, as for jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tierline.core.batch_view import BatchPolicy
from tierline.policies import registry

POLICIES: Mapping[str, str] = {
    "sarathi": "tierline.policies.batching.sarathi:Sarathi",
    "fcfs": "tierline.policies.batching.fcfs:FirstComeFirstServed",
}


def make_batching(name: str, options: Mapping[str, Any] | None = None) -> BatchPolicy:
    """A fresh policy; `options` are its dataclass fields. Raises `UnknownName` or `InvalidInput`."""
    return cast("BatchPolicy", registry.make("batching policy", POLICIES, name, options))
