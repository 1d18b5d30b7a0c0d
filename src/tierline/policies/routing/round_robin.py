"""To each in turn."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tierline.core.request import Role
from tierline.core.routing_view import InstanceView, RequestView


@dataclass(slots=True)
class RoundRobin:
    """Idea: each instance of a stage in turn, whatever it has to do.

    Source: what ElasticMM's release and most proxies do.
    Inputs: names. Memory: how many were sent to each stage. Cost: constant.
    """

    late: ClassVar[bool] = False
    wants_affinity: ClassVar[bool] = False
    sent: dict[int, int] = field(default_factory=dict)

    def choose(self, stage: Role, instances: tuple[InstanceView, ...], request: RequestView, now_ns: int) -> str:
        count = self.sent.get(stage, 0)
        self.sent[stage] = count + 1
        return instances[count % len(instances)].name

    def order(self, request: RequestView, now_ns: int) -> tuple[float, ...]:
        return ()
