"""What a routing policy sees of the instances, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from tierline.core.request import Request, Role


@dataclass(frozen=True, slots=True)
class InstanceView:
    """One instance that may be chosen. `prefill_tokens`: prompt tokens sent there and not done; `decoding`: sequences past
    their prompt, those under way there included; `encoding`: images sent there and not done; `free_blocks` as last told."""

    name: str
    roles: Role
    prefill_tokens: int
    decoding: int
    encoding: int
    free_blocks: int
    total_blocks: int


class RoutingPolicy(Protocol):
    """Chooses an instance for a stage. Pure but for its own declared memory."""

    def choose(self, stage: Role, instances: tuple[InstanceView, ...], request: Request) -> str:
        """The name of one of `instances`; there is one at least. They are in order of joining and all have the role; for an
        image whose embeddings some have already, they are those."""
        ...
