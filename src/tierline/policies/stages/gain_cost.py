"""Whether an instance does more good in another stage: what the prompts gain against what the decodes lose.

Equations 2 and 3 of ElasticMM (NeurIPS 2025) as this repository reads them; `paper.py` has them as they are printed. Both
sides are seconds of normalised latency (per token) over one horizon H.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tierline.core.fleet_view import DecodeView, FleetView, MemberView, PromptView, Proposal
from tierline.core.request import Role
from tierline.core.serving_actions import SetGroup, SetRoles
from tierline.perf.serving_demand import StageRates, completion_s
from tierline.policies.stages.fleet_parts import Part, parts_of, sampled_decodes, sampled_prompts

LEAST_SPEED = 0.05  # decodes never take all of an instance's time from its prompts
Prompts = Sequence[tuple[PromptView, float]]
DecodesOf = Sequence[tuple[DecodeView, float]]


def prompts_gain(prompts: Prompts, before: Sequence[float], after: Sequence[float]) -> float:
    """`Gain = sum_{r in R_p} w_r [t(r | R_p, E_p) - t(r | R_p, E_p u e)] / r.input_tokens`.

    `prompts` with their weights w; `before` and `after`: speeds of E_p and of E_p u e (for a loss the other way round).
    """
    jobs = [prompt.prefill_s * weight for prompt, weight in prompts]
    early, late = completion_s(jobs, before), completion_s(jobs, after)
    return sum(
        weight * (was - now) / max(1, prompt.input_tokens)
        for (prompt, weight), was, now in zip(prompts, early, late, strict=True)
        if was != now
    )


def moving_cost(movers: DecodesOf, rates: StageRates) -> float:
    """`sum_{r on e} w_r M(r) / r.remaining`, `M(r) = setup + KV bytes / bandwidth`, paid once by those that move."""
    return sum(weight * rates.move_s(each.context_tokens) / each.remaining_tokens for each, weight in movers)


def tpot_s(decodes: DecodesOf, devices: int, rates: StageRates) -> float:
    """`TPOT = T(B_d / E_d)` of the batch spread evenly over `devices`."""
    sequences = sum(weight for _, weight in decodes)
    context = sum(weight * each.context_tokens for each, weight in decodes)
    return rates.decode_s(sequences / devices, context / devices)


def slowdown(decodes: DecodesOf, devices: int, fewer: int, horizon_s: float, rates: StageRates) -> float:
    """`sum_{r in B_d} w_r H dTPOT(r) / TPOT(r) / r.remaining`: in H each makes H / TPOT tokens, each
    `dTPOT = TPOT(fewer) - TPOT(devices)` later. Negative where these are more."""
    if not decodes:
        return 0.0
    now_s = tpot_s(decodes, devices, rates)
    later_s = tpot_s(decodes, fewer, rates) - now_s
    return sum(weight * horizon_s * later_s / now_s / each.remaining_tokens for each, weight in decodes)


def taking_cost(movers: DecodesOf, slower: float, w: float, rates: StageRates) -> float:
    """`Cost = sum_{r on e} M(r) / r.remaining + w sum_{r in B_d} H dTPOT(r) / TPOT(r) / r.remaining`, what decode loses with
    the instance of `movers`; `slower`: the second sum (`slowdown`)."""
    return moving_cost(movers, rates) + w * slower


@dataclass(slots=True)
class GainCost:
    """Idea: prefill takes an instance from decode where `Gain > (1 + hysteresis) Cost`, `Cost = sum_{r on e} M(r) /
    r.remaining + w sum_{r in B_d} H dTPOT(r) / TPOT(r) / r.remaining`; decode takes one from prefill by the mirror image of
    the same test when its TPOT or its KV crosses a threshold; idle instances go first. Encode is scaled like prefill where
    it is apart. A modality weighs its own group first, then the other's instance that is hurt least.

    Source: ElasticMM (NeurIPS 2025), section 3.2, equations 2 and 3, with the units mended (design, "Definitions").
    Inputs: samples of prompts and decodes, predicted times, TPOT promised. Memory: none. Cost: instances x sample.
    `prompt_roles`, `decode_roles`: what an instance of each kind may do. With "EP" and "EPD" those that decode prefill too,
    in the time that the decodes leave. `horizon_s`: H. `encode_apart`: encoders are instances of their own. `pool`: groups
    are preferences, so stages are those of the whole. `w`: weight of the slowdown of those that stay. `tpot_share`: of the
    TPOT promised, from where decode asks for more; `kv_share`: of the KV blocks in use. `least_prompts`: so many instances
    are for prompts at least.
    """

    rates: StageRates = field(default_factory=StageRates)
    prompt_roles: str = "EP"
    decode_roles: str = "D"
    encode_apart: bool = False
    pool: bool = False
    horizon_s: float = 2.0
    w: float = 1.0
    hysteresis: float = 0.2
    tpot_share: float = 0.8
    kv_share: float = 0.85
    least_prompts: int = 1

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        parts = parts_of(view, self.pool)
        for part in parts:
            change = self._encoders(part) or self._prefill(view, part) or self._decode(view, part)
            if change is not None:
                return (change,)
        for part in parts:
            for other in parts:
                if other is not part and (proposals := self._reach(view, part, other)):
                    return proposals
        return ()

    # --- within a group

    def _prefill(self, view: FleetView, part: Part) -> SetRoles | None:
        """Prefill takes the decode instance whose taking costs least, if its gain is more."""
        prompts, roles = sampled_prompts(part), self._roles(self.prompt_roles, part)
        takers = [each for each in part.decoders if not each.cooling]
        if not prompts or not takers or len(part.decoders) < 2:
            return None
        decodes, devices = sampled_decodes(part.decoders), len(part.decoders)
        slower = slowdown(decodes, devices, devices - 1, self.horizon_s, self.rates)
        costs = {each.name: taking_cost(sampled_decodes((each,)), slower, self.w, self.rates) for each in takers}
        member = min(takers, key=lambda each: (costs[each.name], each.name))
        before = [self._speed(view, each) for each in part.members]
        after = [1.0 if each is member else self._speed(view, each) for each in part.members]
        gain, cost = prompts_gain(prompts, before, after), costs[member.name]
        if gain <= (1 + self.hysteresis) * cost:
            return None
        return SetRoles(member.name, roles, f"prefill gains {gain:.3g} s a token, decode loses {cost:.3g}")

    def _decode(self, view: FleetView, part: Part) -> SetRoles | None:
        """Decode takes the prompt instance with least queued, where it is short and gains more than the prompts lose."""
        decodes, devices = sampled_decodes(part.decoders), len(part.decoders)
        roles = self._roles(self.decode_roles, part)
        givers = [each for each in part.prefillers if Role.DECODE not in each.roles]
        able = [each for each in givers if not each.cooling]
        if not decodes or not able or len(givers) <= self.least_prompts or len(part.prefillers) < 2:
            return None
        tpot_s, promised_s = max(each.decode_s for each in part.decoders), view.slo.tpot_ns / 1e9
        kv, held = max(each.kv_share for each in part.decoders), sum(each.held for each in part.members)
        if tpot_s < self.tpot_share * promised_s and kv < self.kv_share:
            return None
        member = min(able, key=lambda each: (each.prefill_s + each.encode_s, each.name))
        gain = -slowdown(decodes, devices, devices + 1, self.horizon_s, self.rates)
        left = max(0.0, 1 - tpot_s * devices / (devices + 1) / promised_s) if Role.PREFILL in roles else 0.0
        before = [self._speed(view, each) for each in part.members]
        after = [left if each is member else self._speed(view, each) for each in part.members]
        cost = self.w * prompts_gain(sampled_prompts(part), after, before)
        if kv < self.kv_share and member.prompts and gain <= (1 + self.hysteresis) * cost:
            return None
        told = f"TPOT {tpot_s * 1e3:.1f} of {promised_s * 1e3:.1f} ms, KV {kv:.0%}, {held} held"
        return SetRoles(member.name, roles, f"decode gains {gain:.3g} s a token, prefill loses {cost:.3g}; {told}")

    def _encoders(self, part: Part) -> SetRoles | None:
        """Where encoders are apart: who encodes and who prefills, so that the longer of what waits an instance is least."""
        encoders = [each for each in part.members if each.roles == Role.ENCODE]
        prefillers = [each for each in part.prefillers if not each.roles & (Role.ENCODE | Role.DECODE)]
        if not self.encode_apart or part.modality == "text" or not encoders or not prefillers:
            return None
        encode_s = sum(each.encode_s for each in part.members) + part.encode * self.horizon_s
        prefill_s = sum(each.prefill_s for each in part.members) + part.prefill * self.horizon_s
        e, p = len(encoders), len(prefillers)
        worst = max(encode_s / e, prefill_s / p)
        ahead = max(encode_s / (e + 1), prefill_s / (p - 1)) if p > 1 else worst
        back = max(encode_s / (e - 1), prefill_s / (p + 1)) if e > 1 else worst
        then = min(ahead, back)
        if worst < 0.05 * self.horizon_s or then >= worst / (1 + self.hysteresis):
            return None
        givers, roles = (prefillers, Role.ENCODE) if ahead <= back else (encoders, Role.PREFILL)
        able = [each for each in givers if not each.cooling]
        if not able:
            return None
        member = min(able, key=lambda each: (each.prefill_s + each.encode_s, each.name))
        return SetRoles(member.name, roles, f"what waits an instance shrinks from {worst:.2f} to {then:.2f} s")

    # --- across groups

    def _reach(self, view: FleetView, part: Part, other: Part) -> tuple[Proposal, ...]:
        """A group whose prompts wait and that has nobody to give takes the instance of the other that is hurt least."""
        prompts = sampled_prompts(part)
        if not part.waiting or not prompts:
            return ()
        speeds = [self._speed(view, each) for each in part.members]
        gain = prompts_gain(prompts, speeds, [*speeds, 1.0])
        slower = 0.0
        if len(other.decoders) > 1:
            devices, decodes = len(other.decoders), sampled_decodes(other.decoders)
            slower = slowdown(decodes, devices, devices - 1, self.horizon_s, self.rates)
        theirs = sampled_prompts(other)
        costs: dict[str, float] = {}
        for each in other.members:
            alone = (each in other.prefillers and len(other.prefillers) < 2) or (
                each in other.decoders and len(other.decoders) < 2
            )
            if each.cooling or each.group == "shared" or alone or each.roles == Role.ENCODE:
                continue
            before = [self._speed(view, one) for one in other.members]
            after = [0.0 if one is each else speed for one, speed in zip(other.members, before, strict=True)]
            costs[each.name] = self.w * prompts_gain(theirs, after, before)
            if each in other.decoders:
                costs[each.name] += taking_cost(sampled_decodes((each,)), slower, self.w, self.rates)
        if not costs:
            return ()
        name = min(costs, key=lambda each: (costs[each], each))
        if gain <= (1 + self.hysteresis) * costs[name]:
            return ()
        reason = f"prefill of the {part.modality} group gains {gain:.3g} s a token, the other loses {costs[name]:.3g}"
        return SetGroup(name, part.modality, reason), SetRoles(name, self._roles(self.prompt_roles, part), reason)

    # --- parts of both

    def _roles(self, letters: str, part: Part) -> Role:
        """In a group of text nobody encodes where encoders are apart."""
        roles = Role.parse(letters)
        return roles & ~Role.ENCODE if part.modality == "text" and self.encode_apart else roles

    def _speed(self, view: FleetView, member: MemberView) -> float:
        """The share of its time that an instance has for prompts: what its decodes leave of the TPOT promised."""
        if Role.PREFILL not in member.roles:
            return 0.0
        return max(LEAST_SPEED, 1 - member.decode_s / (view.slo.tpot_ns / 1e9))
