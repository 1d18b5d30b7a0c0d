"""What ElasticMM's release does instead of its equations: fixed queue lengths."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.fleet_view import FleetView, MemberView, Proposal
from tierline.core.request import Role
from tierline.core.serving_actions import SetRoles
from tierline.policies.stages.fleet_parts import Part, parts_of


@dataclass(slots=True)
class Thresholds:
    """Idea: more than `prefill_long` prompts wait, fewer than `decode_short` decodes do, and two instances decode: the last
    one prefills from now on; the other way round with `decode_long` and `prefill_short`; and when what decodes holds more
    than `budget_share` of the KV, the last one that prefills decodes.

    Source: the loop that ElasticMM's release runs (EMPScheduler, 2025-11); its role change returned False, here it is done.
    Inputs: counts of waiting requests, KV in use. Memory: none. Cost: instances.
    """

    prefill_long: int = 30
    prefill_short: int = 5
    decode_long: int = 50
    decode_short: int = 10
    budget_share: float = 0.9

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        return tuple(change for part in parts_of(view, pool=False) if (change := self._change(part)) is not None)

    def _change(self, part: Part) -> SetRoles | None:
        prefilling = sum(each.prompts for each in part.members) + part.waiting
        held = sum(each.held for each in part.members)
        decoders = [each for each in part.decoders if Role.PREFILL not in each.roles]
        prefillers = [each for each in part.prefillers if Role.DECODE not in each.roles]
        if prefilling > self.prefill_long and len(decoders) > 1 and held < self.decode_short:
            return _give(decoders, Role.PREFILL, f"{prefilling} prompts wait, {held} decodes")
        if held > self.decode_long and len(prefillers) > 1 and prefilling < self.prefill_short:
            return _give(prefillers, Role.DECODE, f"{held} decodes wait, {prefilling} prompts")
        kv = max((each.kv_share for each in decoders), default=0.0)
        if kv > self.budget_share and len(prefillers) > 1:
            return _give(prefillers, Role.DECODE, f"decodes hold {kv:.0%} of the KV")
        return None


def _give(members: list[MemberView], role: Role, reason: str) -> SetRoles | None:
    """The last of them does this one stage, as in the release."""
    last = members[-1]
    return None if last.cooling else SetRoles(last.name, role, reason)
