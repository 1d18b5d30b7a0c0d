"""Every job policy over the same arrivals, at loads 2, 4, 8 and 1, five workloads each; and the price's ablation.

Prints the tables of `tierline simulate jobs` and writes them as JSON (`--json FILE`, `-` = stdout). Repeat with:

    python benchmarks/job_policies.py taskset:DIR --json docs/results/job_policies.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path

from tierline import experiments
from tierline.backends.jobs.sim import uniform_nodes
from tierline.cli.simulate import show
from tierline.core.errors import TierlineError
from tierline.policies.jobs import POLICIES

ABLATIONS = ("explsched?priced=false",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="exploratory", help="as in `tierline simulate jobs`")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--loads", default="2,4,8,1")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--policy", default="", help="default: all, and the ablations")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", default="", metavar="FILE|-")
    given = parser.parse_args()
    begun = time.perf_counter()

    def on_run(run: experiments.Run) -> None:
        seconds = time.perf_counter() - begun
        print(f"{seconds:6.0f} s  load {run.load:g} seed {run.seed} {run.policy}", file=sys.stderr)

    try:
        experiment = experiments.Experiment(
            source=given.source,
            nodes=uniform_nodes(given.gpus),
            policies=experiments.parse_policies(given.policy) if given.policy else (*POLICIES, *ABLATIONS),
            jobs=given.jobs,
            loads=tuple(float(load) for load in given.loads.split(",")),
            seeds=given.seeds,
        )
        found = experiments.as_json(experiment, experiments.run_all(experiment, given.workers, on_run))
    except TierlineError as error:
        print(f"job_policies: {error}", file=sys.stderr)
        return 2
    if given.json == "-":
        print(json.dumps(found, indent=1))
        return 0
    for entry in found["loads"].values():
        show(entry, found["paper_mean_gain"])
    if given.json:
        Path(given.json).parent.mkdir(parents=True, exist_ok=True)
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
