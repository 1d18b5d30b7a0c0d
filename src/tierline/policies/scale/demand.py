"""As many instances as the demand fills to a chosen degree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tierline.core.fleet_view import FleetView, MemberView, Proposal
from tierline.core.routing_view import Group
from tierline.core.serving_actions import StartInstance, StopInstance


@dataclass(slots=True)
class DemandScale:
    """Idea: `ceil(demand / target)` instances are wanted, more where what waits is longer than a start takes; one is
    started at a time. One is stopped when fewer have been wanted for `patience_ns` without a break, for a start costs
    `start_s`.

    Source: Llumnix's and ModServe's autoscalers (bands, one at a time); ElasticMM leaves it out.
    Inputs: demand in instances, what waits, load. Memory: since when fewer are wanted. Cost: instances.
    """

    target: float = 0.7
    start_s: float = 30.0
    patience_ns: int = 60_000_000_000
    fewer_since_ns: int = -1

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        count = len(view.members) + view.starting
        demand = view.text.instances + view.multimodal.instances
        waiting = view.text.waiting + view.multimodal.waiting
        # What waits now and could be served by `count` in less time than a start takes needs no other instance.
        waiting_s = view.text.waiting_s + view.multimodal.waiting_s
        wanted = math.ceil(demand / self.target)
        if waiting and (not count or waiting_s / count > self.start_s):
            wanted = max(wanted, count + 1)
        wanted = min(max(wanted, view.min_instances), view.max_instances)
        if wanted >= count:
            self.fewer_since_ns = -1
        if wanted > count:
            group = self._group(view)
            told = f"{wanted} instances are wanted for a demand of {demand:.2f}, {waiting} requests wait; {count} are there"
            return (StartInstance(group, told),)
        if wanted < count and not view.starting:
            if self.fewer_since_ns < 0:
                self.fewer_since_ns = view.now_ns
            able = [each for each in view.members if not each.cooling]
            if view.now_ns - self.fewer_since_ns >= self.patience_ns and able:
                self.fewer_since_ns = view.now_ns
                told = f"{wanted} instances are wanted for a demand of {demand:.2f}; {count} are there"
                return (StopInstance(min(able, key=_load).name, told),)
        return ()

    def _group(self, view: FleetView) -> Group:
        """That of the modality with most waiting, where members are in groups."""
        if all(each.group == "shared" for each in view.members):
            return "shared"
        return max((view.text, view.multimodal), key=lambda each: (each.waiting_s, each.instances)).modality


def _load(member: MemberView) -> tuple[float, int, str]:
    return member.prefill_s + member.encode_s, member.decoding, member.name
