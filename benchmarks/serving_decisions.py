"""What the serving scheduler's decisions cost: microseconds per routing decision (a request is submitted), per word of a
token, and per word of load, by instances and live requests; per tick for presets, whose policies look at the fleet.

Setting. All instances do every stage; one request in five has an image that nobody has, so its decision is two. The
scheduler is called directly, with the events that instances would send; no engine, no messages.

    python benchmarks/serving_decisions.py --json FILE
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from tierline.core.instance_actions import TellEmbeddings, TellStatus, TellTokens
from tierline.core.request import ImageSpan, Request, Sampling
from tierline.core.serving_actions import EncodeOn, QueueAttempt, ServingAction
from tierline.core.serving_events import (
    InstanceJoined,
    InstanceSaid,
    RequestAbandoned,
    RequestSubmitted,
    ServingEvent,
    Tick,
)
from tierline.policies.routing import POLICIES, make_routing
from tierline.presets import PRESETS, Slot, preset_of
from tierline.schedulers.serving import ServingScheduler

NAMES = [*sorted(POLICIES), *(f"preset:{name}" for name in PRESETS)]

INSTANCES = (1, 8, 64)
LIVE = (100, 1000, 10_000)
PROMPT = tuple(range(500))


class Load:
    """One scheduler with so many instances and live requests, and the time of each call."""

    def __init__(self, policy: str, instances: int, live: int) -> None:
        self.names = [f"i{number}" for number in range(instances)]
        slots = dict.fromkeys(self.names, Slot())
        if policy.startswith("preset:"):
            preset = preset_of(policy.removeprefix("preset:"))
            slots = dict(zip(self.names, preset.layout(instances), strict=True))
            self.scheduler = preset.make_scheduler(slots, queue_limit=10**6)
        else:
            self.scheduler = ServingScheduler(make_routing(policy), queue_limit=10**6)
        self.now_ns = 0
        self.rng = random.Random(0)
        self.count = 0
        self.owner: dict[str, str] = {}  # attempt -> instance
        for name, slot in slots.items():
            self.send(InstanceJoined(name, slot.roles))
        while self.scheduler.live < live:
            self.submit()
            if (
                self.scheduler.waiting
            ):  # for room: prompts are done, and decode on; who waits then finds all full of decodes
                for attempt in [each for each in self.owner if self.prompting(each)]:
                    self.token(attempt)

    def prompting(self, attempt: str) -> bool:
        live = self.scheduler.live_request(attempt.partition("#")[0])
        return live is not None and live.attempt == attempt and not live.told

    def send(self, event: ServingEvent) -> float:
        """Seconds that the scheduler took; encoders deliver at once, in no time. A millisecond passes between two events."""
        self.now_ns += 1_000_000
        begun = time.perf_counter()
        actions = self.scheduler.handle(self.now_ns, event)
        took = time.perf_counter() - begun
        self._carry_out(actions)
        return took

    def _carry_out(self, actions: Iterable[ServingAction]) -> None:
        for action in actions:
            if isinstance(action, QueueAttempt):
                self.owner[action.request.request_id] = action.instance
            elif isinstance(action, EncodeOn):
                self.send(InstanceSaid(action.to, TellEmbeddings((action.content_hash,), ())))

    def submit(self) -> float:
        self.count += 1
        image = () if self.count % 5 else (ImageSpan(f"h{self.count}", 0, 64),)
        request = Request(f"r{self.count}", PROMPT, Sampling(max_tokens=100), image)
        return self.send(RequestSubmitted(request, tuple(each.content_hash for each in image)))

    def token(self, attempt: str) -> float:
        live = self.scheduler.live_request(attempt.partition("#")[0])
        if live is None or live.attempt != attempt:
            return 0.0
        return self.send(InstanceSaid(self.owner[attempt], TellTokens(attempt, len(live.told), (7,))))

    def status(self) -> float:
        free = self.rng.randrange(1000)
        status = TellStatus(9, 9, 0, 0, free, 1000, 0, 0, 0, 0, 0, self.count)
        return self.send(InstanceSaid(self.rng.choice(self.names), status))

    def tick(self) -> float:
        return self.send(Tick())

    def abandon(self, attempt: str) -> float:
        del self.owner[attempt]
        return self.send(RequestAbandoned(attempt.partition("#")[0]))


def measure(policy: str, instances: int, live: int, repeats: int) -> dict[str, float | int | str]:
    """Median microseconds of each kind of event at a steady number of live requests."""
    load = Load(policy, instances, live)
    took: dict[str, list[float]] = {"route": [], "token": [], "status": [], "abandon": [], "tick": []}
    attempts = list(load.owner)
    load.rng.shuffle(attempts)
    for number in range(repeats):
        took["token"].append(load.token(attempts[number % len(attempts)]))
        took["status"].append(load.status())
    for number in range(repeats):
        took["route"].append(load.submit())
        took["abandon"].append(load.abandon(attempts[number] if number < len(attempts) else next(iter(load.owner))))
    for _ in range(max(2, repeats // 100) if load.scheduler.tick_ns else 0):
        took["tick"].append(load.tick())
    row: dict[str, float | int | str] = {"policy": policy, "instances": instances, "live": live}
    for name, seconds in took.items():
        seconds = seconds or [0.0, 0.0]
        row[f"{name}_us"] = statistics.median(seconds) * 1e6
        row[f"{name}_p90_us"] = statistics.quantiles(seconds, n=10)[-1] * 1e6
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument("--policies", nargs="*", default=NAMES, choices=NAMES)
    parser.add_argument("--instances", nargs="*", type=int, default=INSTANCES)
    parser.add_argument("--live", nargs="*", type=int, default=LIVE)
    parser.add_argument("--repeats", type=int, default=2000, help="calls of each kind")
    options = parser.parse_args()
    print(f"{'policy':<20}{'instances':>10}{'live':>8}   median (90 %) in us: route, token, status, abandon, tick")
    rows = []
    for policy in options.policies:
        for instances in options.instances:
            for live in options.live:
                row = measure(policy, instances, live, options.repeats)
                rows.append(row)
                cells = "".join(
                    f"{row[f'{name}_us']:>9.1f} ({row[f'{name}_p90_us']:.1f})"
                    for name in ("route", "token", "status", "abandon", "tick")
                )
                print(f"{policy:<20}{instances:>10}{live:>8}   {cells}", flush=True)
    if options.json:
        options.json.write_text(json.dumps({"repeats": options.repeats, "rows": rows}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
