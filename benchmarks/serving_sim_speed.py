"""How many requests a second the serving simulator gets through: by policy, instances and requests. One core, CPU seconds.

Setting. Requests without images are Poisson; prompts and outputs are lognormal with means of about 1,400 and 190 tokens, as
ServeGen's image service mixed with Azure's conversations has them; with `--data` that mix itself, half of the requests with
images. Stage times of Qwen2.5-VL-7B on an H100, a fixed rate for each instance (half of what it can do, in round numbers), so
that more instances mean more requests in the same simulated time. Counted: from the first event to the last, schedulers,
policies, devices, transfers; not the making of the workload. The same run is repeated and the fastest counts.

    python benchmarks/serving_sim_speed.py --json -
    python benchmarks/serving_sim_speed.py --data DATA/serving --policies adaptive,coupled
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

from tierline import __version__
from tierline import serving_experiments as experiments
from tierline.core.served_trace import ServedTrace, TracedRequest
from tierline.core.slo import Slo
from tierline.presets import preset_of
from tierline.workloads.serving import judged

TIMES = "h100:Qwen2.5-VL-7B"
RATE = 10.0  # requests a second of an instance
INSTANCES = (1, 8, 64)
REQUESTS = (1000, 4000, 16_000)


def made_up(requests: int, rate: float, seed: int = 0) -> ServedTrace:
    rng = random.Random(seed)
    at_ns, made = 0, []
    for _ in range(requests):
        at_ns += int(rng.expovariate(rate) * 1e9)
        prompt = min(30_000, max(10, int(rng.lognormvariate(6.95, 0.8))))
        made.append(TracedRequest(at_ns, prompt, max(1, int(rng.lognormvariate(4.93, 0.8)))))
    return ServedTrace("made up", tuple(made), "")


def measure(policy: str, instances: int, requests: int, data: Path | None, repeats: int) -> dict[str, Any]:
    """Simulated requests a second of CPU time, the fastest of `repeats`."""
    rate = RATE * instances
    trace = made_up(requests, rate) if data is None else judged(data, rate, requests / rate)
    setup = experiments.ServingSetup(TIMES, instances, Slo(1_000_000_000, 40_000_000))
    experiments.times_of(TIMES)
    best = float("inf")
    hashes = set()
    for _ in range(repeats):
        begun = time.process_time()
        backend, scheduler = experiments.simulate(trace, preset_of(policy), setup)
        best = min(best, time.process_time() - begun)
        hashes.add(hashlib.sha256(repr(backend.outcomes()).encode()).hexdigest())
    assert len(hashes) == 1, "two runs of the same differ"
    outcomes = backend.outcomes()
    counts = experiments.counts_of(backend, scheduler, outcomes)
    simulated_s = outcomes[-1].arrived_ns / 1e9
    return {
        "policy": policy,
        "instances": instances,
        "requests": len(outcomes),
        "cpu_s": best,
        "requests_per_s": len(outcomes) / best,
        "times_real_time": simulated_s / best,
        "iterations": counts["iterations"],
        "busy_share": counts["busy_share"],
        "prompt_tokens": sum(each.prompt_tokens for each in trace.requests) / len(outcomes),
        "output_tokens": sum(each.output_tokens for each in trace.requests) / len(outcomes),
        "outcomes": hashes.pop()[:12],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policies", default="adaptive,coupled")
    parser.add_argument(
        "--instances", type=int, nargs="*", default=INSTANCES, help="each with the middle of --requests"
    )
    parser.add_argument("--requests", type=int, nargs="*", default=REQUESTS, help="each with 8 instances")
    parser.add_argument("--data", type=Path, help="folder with servegen_mm_image/ and azure/: their mix instead")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", default="", metavar="FILE|-")
    given = parser.parse_args()
    rows = []
    middle = sorted(given.requests)[len(given.requests) // 2]
    cells = [(instances, middle) for instances in given.instances]
    cells += [(8, requests) for requests in given.requests if (8, requests) not in cells]
    quiet = given.json == "-"
    if not quiet:
        print(
            f"{'policy':<14}{'instances':>10}{'requests':>10}{'CPU s':>8}{'requests/s':>12}{'× real time':>12}{'busy':>7}"
        )
    for policy in experiments.parse_presets(given.policies):
        for instances, requests in cells:
            row = measure(policy, instances, requests, given.data, given.repeats)
            rows.append(row)
            if not quiet:
                print(
                    f"{policy:<14}{instances:>10}{row['requests']:>10}{row['cpu_s']:>8.2f}{row['requests_per_s']:>12,.0f}"
                    f"{row['times_real_time']:>12.1f}{row['busy_share']:>7.0%}",
                    flush=True,
                )
    found = {"tierline": __version__, "times": TIMES, "rate_per_instance": RATE, "rows": rows}
    if quiet:
        print(json.dumps(found, indent=1))
    elif given.json:
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
