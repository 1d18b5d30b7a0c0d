"""For tests of whatever is simulated: stage times that one can reckon with, made-up workloads, and whole runs with a record
of every event and action."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from tierline.backends.serving.sim import SimOptions, SimServing
from tierline.clock import SimClock
from tierline.core.actions import Action
from tierline.core.events import Event
from tierline.core.served_trace import ServedTrace, TracedImage, TracedRequest
from tierline.core.stage_times import BatchShape, StageTimes
from tierline.perf.device_sharing import Overlap
from tierline.runtime.driver import Driver
from tierline.schedulers.serving import ServingScheduler


@dataclass(frozen=True, slots=True)
class PlainTimes:
    """`StageTimes` from a few coefficients. Seconds an iteration, a prompt token, a decode and a position of context before
    it; an image and a patch; bytes a second."""

    iteration: float = 5e-3
    token: float = 20e-6
    decode: float = 40e-6
    context: float = 10e-9
    image: float = 2e-3
    patch: float = 4e-6
    prepare: float = 3e-3
    bandwidth: float = 40e9
    setup: float = 1e-3
    kv_token_bytes: int = 60_000
    embedding_token_bytes: int = 7_000
    patches_per_token: int = 4
    kv_tokens: int = 100_000
    overlap: Overlap = field(default_factory=Overlap)

    def iteration_s(self, batch: BatchShape) -> float:
        new = sum(tokens * (1 + cached * 1e-5) for tokens, cached in batch.chunks)
        return self.iteration + self.token * new + self.decode * batch.decodes + self.context * batch.decode_context

    def decodes_s(self, decodes: int, decode_context: int, steps: int) -> float:
        one = self.iteration + self.decode * decodes + self.context * decode_context
        return steps * one + self.context * decodes * steps * (steps - 1) / 2

    def encode_s(self, patches: Sequence[int]) -> float:
        return self.image + self.patch * sum(patches)

    def slowdown(self, tokens: int) -> float:
        return self.overlap.slowdown(tokens)

    def prepare_s(self, patches: int) -> float:
        return self.prepare

    def transfer_s(self, size_bytes: int) -> float:
        return self.setup + size_bytes / self.bandwidth


def made_up_trace(
    seed: int,
    count: int,
    rate: float,
    *,
    images: float = 0.3,
    prefixes: float = 0.3,
    prompt: float = 200.0,
    output: float = 40.0,
) -> ServedTrace:
    """Poisson arrivals of `rate` a second; prompts and outputs with these means, shares with images and shared prefixes, of
    which there are few, so that caches are hit."""
    rng = random.Random(seed)
    at_ns, requests = 0, []
    for _ in range(count):
        at_ns += int(rng.expovariate(rate) * 1e9)
        prefix = tuple((f"p{depth}{rng.randrange(3)}", 40 * depth) for depth in (1, 2))[: rng.choice([1, 2])]
        prefix = prefix if rng.random() < prefixes else ()
        shown = rng.choice([1, 1, 2, 4]) if rng.random() < images else 0
        kinds = [rng.randrange(12) for _ in range(shown)]
        own = max(1, int(rng.expovariate(1 / prompt)))
        requests.append(
            TracedRequest(
                arrived_ns=at_ns,
                text_tokens=sum(tokens for _, tokens in prefix) + own,
                output_tokens=max(1, int(rng.expovariate(1 / output))),
                images=tuple(TracedImage(f"h{kind}", 50 + 30 * kind) for kind in kinds),
                prefix=prefix,
                priority=rng.choice([0, 0, 0, 1]),
            )
        )
    return ServedTrace(f"made up {seed}", tuple(requests), f"{seed}")


@dataclass(slots=True)
class Record:
    """A `Journal` in memory."""

    rows: list[tuple[int, Event, tuple[Action, ...]]] = field(default_factory=list)

    def append(self, entries: Sequence[tuple[int, Event, Sequence[Action]]]) -> None:
        self.rows += [(now_ns, event, tuple(actions)) for now_ns, event, actions in entries]


def simulate(
    scheduler: ServingScheduler, trace: ServedTrace, times: StageTimes, options: SimOptions
) -> tuple[SimServing, Record]:
    """Run a workload to its end."""
    clock, record = SimClock(), Record()
    backend = SimServing(clock, trace, times, options, scheduler.tick_ns)
    Driver(scheduler, backend, clock, record).run()
    return backend, record
