"""To whoever has least to do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tierline.core.request import Role
from tierline.core.routing_view import InstanceView, RequestView


@dataclass(slots=True)
class LeastLoaded:
    """Idea: a prompt goes where the fewest prompt tokens wait, a decode where the fewest sequences decode, an image where
    the fewest images wait; work of other stages breaks ties.

    Source: join the shortest queue; vLLM's and DistServe's dispatchers.
    Inputs: counts per instance. Memory: none. Cost: one pass over the instances.
    """

    late: ClassVar[bool] = False
    wants_affinity: ClassVar[bool] = False

    def choose(self, stage: Role, instances: tuple[InstanceView, ...], request: RequestView, now_ns: int) -> str:
        def load(instance: InstanceView) -> tuple[float, ...]:
            prompt, decode, encode = instance.prefill_tokens, instance.decoding, instance.encoding
            match stage:
                case Role.PREFILL:
                    return prompt, decode, encode
                case Role.DECODE:
                    return decode, prompt, -instance.free_blocks
                case _:
                    return encode, prompt, decode

        return min(instances, key=load).name

    def order(self, request: RequestView, now_ns: int) -> tuple[float, ...]:
        return ()
