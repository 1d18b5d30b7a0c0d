"""As many instances as the demand fills to a chosen degree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tierline.core.fleet_view import FleetView, MemberView, Proposal, SleeperView
from tierline.core.routing_view import Group
from tierline.core.serving_actions import SleepInstance, StartInstance, StopInstance, WakeInstance

NOTHING = 0.01  # of what fills an instance: what is left of a demand that has ended, for its mean only fades


@dataclass(slots=True)
class DemandScale:
    """Idea: `ceil(demand / target)` instances are wanted, one more where what waits takes longer than bringing one: `wake_s`
    where one sleeps, else `start_s`. One at a time: the last that fell asleep is woken; where none sleeps one is started.
    When fewer have been wanted for `patience_ns` without a break, one is put to sleep (without `sleeps` stopped); who has
    slept for `stop_after_ns` is stopped.

    Source: Llumnix's and ModServe's autoscalers (bands, one at a time), vLLM's sleep mode; ElasticMM leaves it out.
    Inputs: demand in instances, what waits, load, who sleeps. Memory: since when fewer are wanted. Cost: instances.
    """

    target: float = 0.7
    start_s: float = 30.0
    wake_s: float = 3.0
    patience_ns: int = 60_000_000_000
    stop_after_ns: int = 600_000_000_000
    sleeps: bool = True
    fewer_since_ns: int = -1

    def propose(self, view: FleetView) -> tuple[Proposal, ...]:
        count = len(view.members) + view.starting
        demand = view.text.instances + view.multimodal.instances
        waiting = view.text.waiting + view.multimodal.waiting
        wanted = self._wanted(view, count, demand, waiting)
        if wanted >= count:
            self.fewer_since_ns = -1
        if wanted > count:
            told = f"{wanted} instances are wanted for a demand of {demand:.2f}, {waiting} requests wait; {count} are there"
            return (self._bring(view, told),)
        if wanted < count and not view.starting:
            if self.fewer_since_ns < 0:
                self.fewer_since_ns = view.now_ns
            able = [each for each in view.members if not each.cooling]
            if view.now_ns - self.fewer_since_ns >= self.patience_ns and able:
                self.fewer_since_ns = view.now_ns
                told = f"{wanted} instances are wanted for a demand of {demand:.2f}; {count} are there"
                name = min(able, key=_load).name
                return (SleepInstance(name, told) if self.sleeps else StopInstance(name, told),)
        slept = [each for each in view.sleeping if view.now_ns - each.since_ns >= self.stop_after_ns]
        if slept:
            return (StopInstance(min(slept, key=_since).name, f"it has slept for {self.stop_after_ns / 1e9:g} s"),)
        return ()

    def _wanted(self, view: FleetView, count: int, demand: float, waiting: int) -> int:
        filled = demand / self.target
        wanted = math.ceil(filled) if filled >= NOTHING else 0
        # What waits now and could be served by `count` in less time than another one takes to come needs no other.
        waiting_s = view.text.waiting_s + view.multimodal.waiting_s
        if waiting and (not count or waiting_s / count > (self.wake_s if view.sleeping else self.start_s)):
            wanted = max(wanted, count + 1)
        return min(max(wanted, view.min_instances), view.max_instances)

    def _bring(self, view: FleetView, told: str) -> Proposal:
        group = self._group(view)
        if view.sleeping:
            return WakeInstance(max(view.sleeping, key=_since).name, group, told)
        return StartInstance(group, told)

    def _group(self, view: FleetView) -> Group:
        """That of the modality with most waiting, where members are in groups."""
        if all(each.group == "shared" for each in view.members):
            return "shared"
        return max((view.text, view.multimodal), key=lambda each: (each.waiting_s, each.instances)).modality


def _load(member: MemberView) -> tuple[float, int, str]:
    return member.prefill_s + member.encode_s, member.decoding, member.name


def _since(sleeper: SleeperView) -> tuple[int, str]:
    return sleeper.since_ns, sleeper.name
