"""One queue for all, by deadline; a request is bound to an instance when that has room for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from tierline.core.request import Role
from tierline.core.routing_view import WAIT, InstanceView, RequestView
from tierline.core.slo import Slo
from tierline.perf.serving_demand import StageRates
from tierline.policies.deadlines import place

BIG = 1 << 62


@dataclass(slots=True)
class LateBinding:
    """Idea: instances hold little ahead of what they compute, the rest waits here in order of deadlines (hopeless ones last,
    until they come again); who has room gets the first of them, or, with a choice, where its first token is predicted
    earliest: queue and own prompt without what is cached there, over the share of time that decodes leave.

    Source: ours (design, "What a first study found"); late binding as in Sparrow (SOSP 2013), TTFT as in Mooncake's and
    DualMap's routers.
    Inputs: predicted seconds, cached and embedded tokens, groups, free blocks. Memory: none. Cost: one pass.
    `ahead_s`: prompt seconds that an instance may have, what it computes included; `ahead_prompts` it may have in any case,
    so that it is not idle while word of an end is under way. `most_barred`: prompts that it may have whose images are still
    being encoded; these do not count. `cross_s`: how much later the first token may be before an instance of the other
    group is taken. `full_share`: of the time that the TPOT promised leaves beside one decode, beyond which an instance's
    decodes leave none for prompts. `filled_share`: of that TPOT, to which prompts lengthen the iterations of one that
    decodes. `kv_share`: of the blocks that may be in use before no prompt comes. `overlap`: how far the encoder slows
    iterations of the same device down (0 = not at all).
    """

    late: ClassVar[bool] = True
    wants_affinity: ClassVar[bool] = True
    rates: StageRates = field(default_factory=StageRates)
    slo: Slo = field(default_factory=Slo)
    ahead_s: float = 0.05
    ahead_prompts: int = 2
    most_barred: int = 2
    cross_s: float = 0.002
    step_s: float = 0.05
    kv_share: float = 0.95
    overlap: float = 0.75
    least_share: float = 0.1
    full_share: float = 0.45
    filled_share: float = 0.7
    trust: float = 0.9
    patience_ns: int = 10_000_000_000
    priority_ns: int = 1_000_000_000
    by_deadline: bool = True
    block_tokens: int = 16

    def choose(self, stage: Role, instances: tuple[InstanceView, ...], request: RequestView, now_ns: int) -> str:
        match stage:
            case Role.PREFILL:
                return self._prefill(instances, request)
            case Role.DECODE:
                return self._decode(instances, request)
        return self._encode(instances, request)

    def order(self, request: RequestView, now_ns: int) -> tuple[float, ...]:
        if not self.by_deadline:
            return (float(request.submitted_ns - request.priority * self.priority_ns),)
        return place(
            now_ns,
            request.submitted_ns,
            request.deadline_ns,
            request.prefill_s + request.encode_s,
            self.patience_ns,
            request.priority,
            self.priority_ns,
        )

    def _prefill(self, instances: tuple[InstanceView, ...], request: RequestView) -> str:
        whole_s, tpot_s, modality = request.prefill_s + request.encode_s, self.slo.tpot_ns / 1e9, request.modality
        # Deadlines of text are earlier than those of images, so it passes them at an instance as well as in the line here.
        passes = not request.images and self.by_deadline and self.slo.image_ttft_ns > self.slo.ttft_ns
        step_s, least_share, overlap = self.step_s, self.least_share, self.overlap
        works_s = {name: self._work_s(request, name) for name in {*request.cached, *request.embedded}}
        full_s, most_barred = self._full_s(), self.most_barred if request.images else BIG
        best, least = WAIT, float("inf")
        for each in instances:
            decode_s = each.decode_s
            if decode_s > full_s or each.barred >= most_barred:
                continue
            queued_s = each.prefill_s
            if passes:  # but the iteration that is under way, or that an image is about to begin
                others_s = queued_s - each.texts_s
                queued_s = each.texts_s + (others_s if others_s < step_s else step_s)
            work_s = works_s.get(each.name, whole_s) if works_s else whole_s
            share = 1 - decode_s / tpot_s
            ttft_s = (queued_s + work_s + overlap * each.encode_s) / (share if share > least_share else least_share)
            group = each.group
            if group != "shared" and group != modality:
                ttft_s += self.cross_s
            if ttft_s < least and self._has_room(each, request, queued_s, passes):
                best, least = each.name, ttft_s
        return best

    def _work_s(self, request: RequestView, name: str) -> float:
        """Of the request at this instance, without what is cached and embedded there."""
        work_s = request.prefill_s
        if hit := request.cached.get(name, 0):
            work_s -= self.trust * (work_s - self.rates.prefill_s(request.prompt_tokens, hit))
        if request.images:
            token_s = request.encode_s / request.image_tokens if request.image_tokens else 0.0
            work_s += request.encode_s - token_s * request.embedded.get(name, 0)
        return work_s

    def _full_s(self) -> float:
        """An iteration of the decodes of an instance that leaves no time for prompts; where no decode can be in time, none
        is waited for."""
        base_s = self.rates.decode_base_s
        spare_s = self.slo.tpot_ns / 1e9 - base_s
        return base_s + self.full_share * spare_s if spare_s > 0.0 else float("inf")

    def _has_room(self, instance: InstanceView, request: RequestView, queued_s: float, passes: bool) -> bool:
        """Of an instance that is not full of decodes or of images under way."""
        if not request.images:
            ready, ready_s = instance.prompts - instance.barred, queued_s - instance.barred_s
            if passes:
                ready, ready_s = instance.texts, instance.texts_s
            if ready >= self.ahead_prompts and ready_s > self.ahead_s:
                return False
        if instance.total_blocks and (instance.decoding or instance.prompts):
            needed = (instance.prefill_tokens + request.prompt_tokens) / self.block_tokens
            return instance.free_blocks - needed >= (1 - self.kv_share) * instance.total_blocks
        return True

    def _decode(self, instances: tuple[InstanceView, ...], request: RequestView) -> str:
        """Where the iterations are shortest with it; prompts there make them longer, up to `filled_share`."""
        filled_s, blocks = self.filled_share * self.slo.tpot_ns / 1e9, request.prompt_tokens / self.block_tokens
        best, least_s, alone_s = WAIT, float("inf"), float("inf")
        for each in instances:
            decode_s = iteration_s = each.decode_s
            if each.total_blocks and each.free_blocks < blocks:
                iteration_s = float("inf")
            elif decode_s < filled_s:
                spare_s = filled_s - decode_s
                iteration_s += each.prefill_s if each.prefill_s < spare_s else spare_s
            if iteration_s < least_s or (iteration_s == least_s and decode_s < alone_s):
                best, least_s, alone_s = each.name, iteration_s, decode_s
        return best

    def _encode(self, instances: tuple[InstanceView, ...], request: RequestView) -> str:
        """At home unless another's encoder is free so much earlier that the way pays."""
        way_s, overlap, home = self.rates.transfer_base_s, self.overlap, request.home
        best, least_s = WAIT, float("inf")
        for each in instances:
            # Prompts without their images, the one's own among them, do not run beside it.
            beside_s = overlap * (each.prefill_s - each.barred_s)
            if each.name == home:
                ends_s = each.encode_s + max(0.0, beside_s - overlap * request.prefill_s)
            else:
                ends_s = each.encode_s + beside_s + way_s
            if ends_s < least_s:
                best, least_s = each.name, ends_s
        return best
