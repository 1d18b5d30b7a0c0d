"""The batching policies: what an instance computes in its next iteration. One registration point, as for jobs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from tierline.core.batch_view import BatchPolicy
from tierline.core.slo import Slo
from tierline.core.stage_times import StageTimes
from tierline.policies import registry

POLICIES: Mapping[str, str] = {
    "sarathi": "tierline.policies.batching.sarathi:Sarathi",
    "fcfs": "tierline.policies.batching.fcfs:FirstComeFirstServed",
    "slo_chunk": "tierline.policies.batching.slo_chunk:SloChunk",
}


def make_batching(
    name: str, options: Mapping[str, Any] | None = None, times: StageTimes | None = None, slo: Slo | None = None
) -> BatchPolicy:
    """A fresh policy; `options` are its dataclass fields, `times` and `slo` go to those that predict. Raises `UnknownName` or
    `InvalidInput`."""
    offered = {"times": times, "slo": slo}
    return cast("BatchPolicy", registry.make("batching policy", POLICIES, name, options, offered))
