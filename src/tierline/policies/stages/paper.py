"""ElasticMM's equations 2 and 3 as they are printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tierline.core.fleet_view import DecodeView, FleetView, MemberView, PromptView, Proposal
from tierline.core.request import Role
from tierline.core.serving_actions import SetGroup, SetRoles
from tierline.perf.serving_demand import StageRates, makespan_s
from tierline.policies.stages.fleet_parts import Part, parts_of, sampled_decodes, sampled_prompts

Prompts = Sequence[tuple[PromptView, float]]
DecodesOf = Sequence[tuple[DecodeView, float]]


def equation_2_gain(prompts: Prompts, devices: int) -> float:
    """`Gain = sum_{r in R_p} [T(R_p, E_p) - T(R_p, E_p u e_max)] / r.input_len`, T the makespan."""
    jobs = [each.prefill_s * weight for each, weight in prompts]
    saved = makespan_s(jobs, [1.0] * devices) - makespan_s(jobs, [1.0] * (devices + 1))
    return sum(weight * saved / max(1, each.input_tokens) for each, weight in prompts) if jobs and devices else 0.0


def equation_2_cost(decodes: DecodesOf, member: MemberView, devices: int, w: float, rates: StageRates) -> float:
    """`Cost = sum_{r in B_d} [M(e_max) + w L(B_d, E_d - e_max)] / r.output_len`: M the KV of e_max over the bandwidth, L
    how much longer one iteration takes without it; output_len is what was made and what is predicted to come."""
    each_s = rates.move_s(member.context_tokens) + w * (
        _iteration_s(decodes, devices - 1, rates) - _iteration_s(decodes, devices, rates)
    )
    return sum(weight * each_s / _output_len(decode) for decode, weight in decodes)


def equation_3_gain(decodes: DecodesOf, devices: int, mean_tpot_s: float, rates: StageRates) -> float:
    """`Gain = sum_{r in B_d} [AvgLat_d - T(B_d, E_d u e_max)] / r.output_len`; AvgLat_d is the mean decode time a token of
    answers that ended lately, so that both are times of one iteration."""
    saved = mean_tpot_s - _iteration_s(decodes, devices + 1, rates)
    return sum(weight * saved / _output_len(decode) for decode, weight in decodes)


def equation_3_cost(prompts: Prompts, member: MemberView, devices: int, w: float, rates: StageRates) -> float:
    """`Cost = sum_{r in R'_p} [M(e_max) + w L(R'_p, E'_p - e_max)] / r.input_len`: L is how much longer the prompts take."""
    if not prompts:
        return 0.0
    jobs = [each.prefill_s * weight for each, weight in prompts]
    longer = makespan_s(jobs, [1.0] * (devices - 1)) - makespan_s(jobs, [1.0] * devices)
    each_s = rates.move_s(member.context_tokens) + w * longer
    return sum(weight * each_s / max(1, each.input_tokens) for each, weight in prompts)


def _iteration_s(decodes: DecodesOf, devices: int, rates: StageRates) -> float:
    """`T(B_d, E_d)`: one iteration of the batch spread evenly."""
    sequences = sum(weight for _, weight in decodes)
    return rates.decode_s(sequences / devices, sum(weight * each.context_tokens for each, weight in decodes) / devices)


def _output_len(decode: DecodeView) -> float:
    return decode.output_tokens + decode.remaining_tokens


@dataclass(slots=True)
class PaperStages:
    """Idea: idle instances prefill what waits; prefill takes the decode instance with most free KV where equation 2's gain
    is more than its cost; decode, once its TPOT or KV crosses a threshold, takes a prefill instance of its group or of the
    other where equation 3's is.

    Source: ElasticMM (NeurIPS 2025), section 3.2, with the estimates it leaves out taken from LoongServe: M = KV / bandwidth.
    Inputs: samples of prompts and decodes, predicted times, mean TPOT. Memory: none. Cost: instances x sample.
    `w`: the paper's penalty factor, tuned by hand there too. `tpot_share`, `kv_share`: its offline thresholds.
    """

    rates: StageRates = field(default_factory=StageRates)
    w: float = 1.0
    tpot_share: float = 0.8
    kv_share: float = 0.85

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        parts = parts_of(view, pool=False)
        for part in parts:
            if change := self._equation_2(part):
                return (change,)
            if self._short(view, part) and (found := self._equation_3(view, part, parts)):
                return found
        return ()

    def _equation_2(self, part: Part) -> SetRoles | None:
        prompts, decodes = sampled_prompts(part), sampled_decodes(part.decoders)
        able = [each for each in part.decoders if Role.PREFILL not in each.roles and not each.cooling]
        if not prompts or not able or not part.prefillers or len(part.decoders) < 2:
            return None
        e_max = max(able, key=lambda each: (each.free_blocks, each.name))
        gain = equation_2_gain(prompts, len(part.prefillers))
        cost = equation_2_cost(decodes, e_max, len(part.decoders), self.w, self.rates)
        if gain <= cost:
            return None
        return SetRoles(e_max.name, Role.PREFILL, f"equation 2: gain {gain:.3g} > cost {cost:.3g} s a token")

    def _short(self, view: FleetView, part: Part) -> bool:
        tpot_s = max((each.decode_s for each in part.decoders), default=0.0)
        kv = max((each.kv_share for each in part.decoders), default=0.0)
        held = any(each.held for each in part.members)
        return tpot_s > self.tpot_share * view.slo.tpot_ns / 1e9 or kv > self.kv_share or held

    def _equation_3(self, view: FleetView, part: Part, parts: tuple[Part, ...]) -> tuple[Proposal, ...]:
        decodes = sampled_decodes(part.decoders)
        for other in sorted(parts, key=lambda each: each is not part):  # its own group first
            able = [each for each in other.prefillers if Role.DECODE not in each.roles and not each.cooling]
            if not decodes or not able or len(other.prefillers) < 2:
                continue
            e_max = max(able, key=lambda each: (not each.prompts, each.free_blocks, each.name))
            gain = equation_3_gain(decodes, len(part.decoders), view.mean_tpot_s, self.rates)
            cost = equation_3_cost(sampled_prompts(other), e_max, len(other.prefillers), self.w, self.rates)
            if gain <= cost and e_max.prompts:
                continue
            reason = f"equation 3: gain {gain:.3g}, cost {cost:.3g} s a token" + (
                "" if e_max.prompts else ", it is idle"
            )
            roles = SetRoles(e_max.name, Role.DECODE, reason)
            return (roles,) if other is part else (SetGroup(e_max.name, part.modality, reason), roles)
        return ()
