"""ElasticMM's dispatch: groups by modality, first come first served, no more at a time than arithmetic can use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tierline.core.request import Role
from tierline.core.routing_view import WAIT, InstanceView, RequestView
from tierline.perf.serving_demand import StageRates


@dataclass(slots=True)
class Emp:
    """Idea: a request stays within the group of its modality; prompts are given to an instance in order of arrival until what
    it has reaches the tipping point, where an iteration turns from memory-bound to compute-bound, or its free KV; the rest
    waits. A group that is full spills into instances of the other that have nothing to do for prompts.

    Source: ElasticMM (NeurIPS 2025), section 3.2, request dispatching; LoongServe (SOSP 2024) for the bound.
    Inputs: group, prompt tokens, free blocks, decodes, encoder seconds. Memory: none. Cost: one pass over the instances.
    `aging_ns`: so long a wait is worth a step of priority. `block_tokens`: of the instances' KV blocks.
    `most_barred`: prompts that an instance may have whose images are still being encoded.
    """

    late: ClassVar[bool] = True
    wants_affinity: ClassVar[bool] = False
    rates: StageRates = field(default_factory=StageRates)
    aging_ns: int = 1_000_000_000
    block_tokens: int = 16
    most_barred: int = 16
    spill: bool = True

    def choose(self, stage: Role, instances: tuple[InstanceView, ...], request: RequestView, now_ns: int) -> str:
        modality = request.modality
        own = [each for each in instances if each.group in (modality, "shared")]
        match stage:
            case Role.ENCODE:
                return min(own or instances, key=lambda each: (each.encode_s, each.name != request.home)).name
            case Role.DECODE:
                return min(own or instances, key=lambda each: (each.decoding, -each.free_blocks)).name
        if free := [each for each in own if self._has_room(each, request)]:
            return min(free, key=lambda each: (each.prefill_tokens, each.decoding, each.encoding)).name
        others = [each for each in instances if each.group not in (modality, "shared")]
        if self.spill or not own:
            idle = [each for each in others if not each.prompts and not each.encoding and self._has_room(each, request)]
            if idle:
                return min(idle, key=lambda each: each.decoding).name
        return WAIT

    def order(self, request: RequestView, now_ns: int) -> tuple[float, ...]:
        return (float(request.submitted_ns - request.priority * self.aging_ns),)

    def _has_room(self, instance: InstanceView, request: RequestView) -> bool:
        """R_p takes one at least; more while the tipping point and the free KV allow."""
        if instance.idle:
            return True
        if instance.total_blocks:
            needed = -(-(instance.prefill_tokens + request.prompt_tokens) // self.block_tokens)
            if needed > instance.free_blocks and instance.decoding:
                return False
        # Those whose images are still being encoded are not in the iteration: others use the time.
        tokens = instance.prefill_tokens - instance.barred_tokens + request.prompt_tokens
        ready = instance.prompts - instance.barred
        return instance.barred < self.most_barred and (not ready or tokens <= self.rates.tipping_tokens)
