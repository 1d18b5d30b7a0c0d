"""To whoever has the beginning of the prompt, unless too much waits there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tierline.core.request import Role
from tierline.core.routing_view import InstanceView, RequestView
from tierline.perf.serving_demand import StageRates


@dataclass(slots=True)
class PrefixAffinity:
    """Idea: a prompt goes where it ends first by the work that waits there and the work that is left of it, both without what
    the prefix and embedding caches hold; decodes slow an instance down.

    Source: SGLang's and Dynamo's cache-aware routers; ElasticMM's unified cache for the images.
    Inputs: predicted seconds per instance, cached and embedded tokens. Memory: none. Cost: one pass over the instances.
    `trust`: of what the index says is cached, so much is counted on (instances give up blocks without telling).
    """

    late: ClassVar[bool] = False
    wants_affinity: ClassVar[bool] = True
    rates: StageRates = field(default_factory=StageRates)
    trust: float = 0.9

    def choose(self, stage: Role, instances: tuple[InstanceView, ...], request: RequestView, now_ns: int) -> str:
        match stage:
            case Role.DECODE:
                return min(instances, key=lambda each: (each.decode_s, each.prefill_s)).name
            case Role.ENCODE:
                return min(instances, key=lambda each: (each.encode_s, each.name != request.home, each.prefill_s)).name
        cached, embedded = request.cached, request.embedded
        encode_token_s = request.encode_s / request.image_tokens if request.image_tokens else 0.0
        best, least = instances[0].name, float("inf")
        for each in instances:
            # An iteration that decodes too is longer by that: a decode costs the prompts there its time, once an iteration.
            load = each.prefill_s + each.encode_s + each.decode_s
            if cached and (hit := cached.get(each.name, 0)):
                load -= self.trust * (request.prefill_s - self.rates.prefill_s(request.prompt_tokens, hit))
            if embedded and (made := embedded.get(each.name, 0)):
                load -= encode_token_s * made
            if load < least:
                best, least = each.name, load
        return best

    def order(self, request: RequestView, now_ns: int) -> tuple[float, ...]:
        return ()
