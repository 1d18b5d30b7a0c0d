"""As few instances decode as keep the TPOT promised; where all of them can keep it beside prompts, all do everything."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from tierline.core.fleet_view import FleetView, MemberView, Proposal
from tierline.core.request import ALL_ROLES, Role
from tierline.core.serving_actions import SetRoles
from tierline.perf.serving_demand import PROBE_DECODES, StageRates


def steady_tpot_s(tokens_per_s: float, context_tokens: float, prompt_share: float, rates: StageRates) -> float:
    """`T = a / (1 - b X - p)`: where X tokens a second are decoded on one instance, T long iterations have B = X T sequences
    and take `a + b B`, a the part without sequences and b that of a sequence with its context; the share p of the time is
    for prompts and images. Infinite where they do not fit."""
    sequence_s = rates.decode_sequence_s + rates.decode_context_s * context_tokens
    left = 1 - sequence_s * tokens_per_s - prompt_share
    return rates.decode_base_s / left if left > 0 else math.inf


@dataclass(slots=True)
class EnoughDecoders:
    """Idea: prompts beside decodes read the weights once for both, but every decode waits for every prompt; decodes by
    themselves are faster the more of them share an iteration. So all instances do everything as long as the TPOT that this
    leads to is well below the one promised; else the smallest number decodes (and prefills in what is left) that keeps it
    and has seats for all sequences, and the others are for prompts alone.

    Source: ours (design, "What a first study found": EP | D merged); DistServe's (OSDI 2024) placement, done at run time.
    Inputs: demand by stage, contexts, TPOT promised. Memory: none. Cost: instances.
    `mixed_share`: of the time that the TPOT promised leaves beside one decode, up to where all do everything. `tpot_share`:
    of that TPOT, up to where decodes share an instance. `seats`: sequences of an instance; `seats_share` of them may be
    taken. `least_share`: of the instances decode at least; fewer than `few_share` only where they stay within
    `few_tpot_share` of the TPOT and `few_seats_share` of the seats, for others are slow to help them, and not at the first
    split, when little has been seen. `margin`: so much more or less demand must ask for a change as well.
    `encode_weight`: an image costs iterations beside it so much of its time.
    """

    rates: StageRates = field(default_factory=StageRates)
    mixed_share: float = 0.15
    tpot_share: float = 0.95
    few_tpot_share: float = 0.7
    few_seats_share: float = 0.4
    seats: int = 256
    seats_share: float = 0.85
    least_share: float = 0.25
    few_share: float = 0.375
    margin: float = 0.1
    encode_weight: float = 0.5

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        members = view.members
        if len(members) < 4 or not view.mean_tpot_s:
            return ()
        count, have = len(members), sum(Role.DECODE in each.roles for each in members)
        light, heavy = self.wanted(view, 1 - self.margin), self.wanted(view, 1 + self.margin)
        if have == count:
            if light == count:
                return ()
            wanted = max(self.wanted(view), round(self.few_share * count))
        elif heavy == count:
            wanted = count
        else:
            light = min(light, heavy)
            if light <= have <= heavy:
                return ()
            wanted = heavy if have > heavy else light
        reason = f"{wanted} of {count} instances are enough to decode"
        if wanted > have:
            able = [each for each in members if Role.DECODE not in each.roles and not each.cooling]
            able.sort(key=lambda each: (each.prefill_s + each.encode_s, each.name))
            return tuple(SetRoles(each.name, ALL_ROLES, reason) for each in able[: wanted - have])
        able = [each for each in members if Role.DECODE in each.roles and not each.cooling]
        able.sort(key=lambda each: (each.decoding, each.name))
        roles = Role.ENCODE | Role.PREFILL
        return tuple(SetRoles(each.name, roles, reason) for each in able[: have - wanted])

    def wanted(self, view: FleetView, weight: float = 1.0) -> int:
        """How many instances are to decode for `weight` times the demand."""
        count, demands = len(view.members), (view.text, view.multimodal)
        context = _mean_context(view.members)
        probe_s = self.rates.decode_s(PROBE_DECODES, PROBE_DECODES * context) / PROBE_DECODES
        # What has been seen of demand lags behind where more decode already, and what decodes behind where more is asked.
        seen_per_s = sum(each.decoding for each in view.members) / view.mean_tpot_s if view.mean_tpot_s else 0.0
        tokens_per_s = weight * max(seen_per_s, sum(each.decode for each in demands) / probe_s)
        prompts = weight * sum(each.prefill + self.encode_weight * each.encode for each in demands)
        promised_s = view.slo.tpot_ns / 1e9
        mixed_s = steady_tpot_s(tokens_per_s / count, context, prompts / count, self.rates)
        base_s = self.rates.decode_base_s
        if mixed_s <= base_s + self.mixed_share * (promised_s - base_s):
            return count
        for fewer in range(max(1, round(self.least_share * count)), count // 2 + 1):
            tpot_s = steady_tpot_s(tokens_per_s / fewer, context, 0.0, self.rates)
            sequences = tokens_per_s / fewer * promised_s  # prompts in what is left make iterations as long as promised
            few = fewer < round(self.few_share * count)
            share, seats_share = (
                (self.few_tpot_share, self.few_seats_share) if few else (self.tpot_share, self.seats_share)
            )
            if tpot_s <= share * promised_s and sequences <= seats_share * self.seats:
                return fewer
        return count


def _mean_context(members: tuple[MemberView, ...]) -> float:
    """Positions of a sequence that decodes, on average."""
    decoding = sum(each.decoding for each in members)
    return sum(each.context_tokens for each in members) / decoding if decoding else 1024.0
