"""What happens between the decision for an iteration and its run."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("torch")

from tierline.core.instance_actions import RunStep, Tell, TellTimes, TellTokens
from tierline.core.instance_events import RequestCancelled, RequestQueued
from tierline.core.request import Request, Sampling, TokenLogprob
from tierline.core.stage_times import BatchShape
from tierline.engine import instance as instance_module
from tierline.engine.instance import Instance
from tierline.engine.runner import Sampled
from tierline.perf.fitted_rates import FittedRates
from tierline.policies.batching import make_batching
from tierline.schedulers.instance import InstanceScheduler
from tierline.schedulers.instance_state import InstanceLimits


class Runner:
    """Draws token 7; knows only sequences that were not dropped, as the real one does."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.ran: list[list[str]] = []

    def add(self, request: Request) -> None:
        self.known.add(request.request_id)

    def drop(self, request_id: str) -> None:
        self.known.discard(request_id)

    def run(self, step: RunStep) -> list[Sampled]:
        names = [chunk.request_id for chunk in step.chunks]
        assert names, "there is nothing to compute"
        assert self.known.issuperset(names)
        self.ran.append(names)
        return [Sampled(name, 7, None) for name in names]


class Port:
    def __init__(self) -> None:
        self.told: list[Tell] = []

    def send(self, *words: object) -> None:
        raise AssertionError("it has no peers")

    def tell(self, message: Tell, logprobs: tuple[TokenLogprob, ...]) -> None:
        self.told.append(message)


def test_an_instance_tells_how_long_its_iterations_take() -> None:
    """Nothing is computed here, so an iteration takes far less than on the large device that is assumed."""
    scheduler = InstanceScheduler("i0", InstanceLimits(blocks=200, context_tokens=2000), make_batching("sarathi"))
    port, anything = Port(), None
    engine: Any = Runner()
    nothing: Any = anything
    instance = Instance("i0", scheduler, engine, nothing, nothing, {}, port, rates=FittedRates())
    instance.deliver(RequestQueued(Request("a", (1, 2, 3), Sampling(500, ignore_eos=True)), ()))
    while instance.has_step:
        instance.step()
        if len(engine.ran) in (5, 400):
            instance.tell_times()
            instance.tell_times()
    (told,) = [message for message in port.told if isinstance(message, TellTimes)]
    assert 0 < told.factors[0] < 0.5 and told.factors[1] == told.factors[4] == 0.0


def test_what_lies_between_two_iterations_counts_as_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """But not the time in which nobody wanted anything."""
    clock, seen = [0], []
    monkeypatch.setattr(instance_module.time, "perf_counter_ns", lambda: clock[0])

    class Observer:
        def observe(self, batch: BatchShape, seconds: float) -> None:
            seen.append((batch.decodes, round(seconds * 1e3)))

    class Slow(Runner):
        def run(self, step: RunStep) -> list[Sampled]:
            clock[0] += 5_000_000
            return super().run(step)

    engine: Any = Slow()
    observer: Any = Observer()
    nothing: Any = None
    scheduler = InstanceScheduler("i0", InstanceLimits(blocks=20, context_tokens=64), make_batching("sarathi"))
    instance = Instance("i0", scheduler, engine, nothing, nothing, {}, Port(), observed=observer)
    for name in "ab":
        instance.deliver(RequestQueued(Request(name, (1, 2, 3), Sampling(3, ignore_eos=True)), ()))
        while instance.has_step:
            instance.step()
            clock[0] += 2_000_000  # messages
        clock[0] += 90_000_000  # nothing to do
    assert seen == [(0, 5), (1, 7), (1, 7)] * 2


@pytest.mark.parametrize("staying", [0, 2])
def test_a_request_cancelled_before_its_iteration_runs_harms_nobody(staying: int) -> None:
    scheduler = InstanceScheduler("i0", InstanceLimits(blocks=20, context_tokens=64), make_batching("sarathi"))
    runner, port = Runner(), Port()
    anything: Any = None
    engine: Any = runner
    instance = Instance("i0", scheduler, engine, anything, anything, {}, port)
    names = [f"stays{number}" for number in range(staying)]
    for name in (*names, "goes"):
        instance.deliver(RequestQueued(Request(name, (1, 2, 3), Sampling(2, ignore_eos=True)), ()))
    instance.step()  # the first alone, for it came first
    assert instance.has_step
    instance.deliver(RequestCancelled("goes"))
    while instance.has_step:
        instance.step()
    told = [message for message in port.told if isinstance(message, TellTokens)]
    assert {message.request_id for message in told if message.finish} == set(names)
    assert scheduler.status().free_blocks == scheduler.status().total_blocks
