"""Twelve pairs of programs on the simulated device under every kernel policy: throughput and high-priority p99.

Every cell is printed, losses included, and written as JSON (`--json FILE`, `-` = stdout) with the hash of the frozen truth
(device, programs, pairs). Repeat with:

    python benchmarks/kernel_policies.py --json docs/results/kernel_policies.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tierline.backends.kernels.pairs import PLAIN, Comparison, PairRow, compare, count_runs, pair_names, policy_names
from tierline.cli.simulate_kernels import as_json, show
from tierline.core.errors import TierlineError
from tierline.policies.kernels import MODES

AIM_P99, AIM_GAIN = 1.07, 1.3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="h200")
    parser.add_argument("--pairs", default="all")
    parser.add_argument("--policies", default="all")
    parser.add_argument("--profiles", default="exact")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", default="", metavar="FILE|-")
    given = parser.parse_args()
    try:
        comparison = Comparison(
            pairs=pair_names() if given.pairs == "all" else tuple(given.pairs.split(",")),
            policies=policy_names() if given.policies == "all" else tuple(given.policies.split(",")),
            modes=MODES,
            device=given.device,
            profiles=given.profiles,
            seeds=given.seeds,
        )
        total, done = count_runs(comparison), []

        def on_run(what: str) -> None:
            done.append(what)
            print(f"{len(done)}/{total}  {what}", file=sys.stderr)

        rows = compare(comparison, given.workers, on_run)
        found = as_json(comparison, rows)
    except TierlineError as error:
        print(f"kernel_policies: {error}", file=sys.stderr)
        return 2
    if given.json == "-":
        print(json.dumps(found, indent=1))
        return 0
    show(comparison, rows)
    print()
    summarise(rows)
    print(f"truth {found['truth_sha256'] or '(not frozen)'}")
    if given.json:
        Path(given.json).parent.mkdir(parents=True, exist_ok=True)
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


def summarise(rows: Sequence[PairRow]) -> None:
    """Over all pairs: how often each policy meets the aims, and its means."""
    for policy, mode in dict.fromkeys((row.policy, row.mode) for row in rows):
        of_policy = [row for row in rows if (row.policy, row.mode) == (policy, mode)]
        mean = sum(row.over_sequential for row in of_policy) / len(of_policy)
        calm = sum(row.high_p99 <= AIM_P99 for row in of_policy)
        gains = sum(row.over_sequential >= AIM_GAIN for row in of_policy)
        losses = sum(row.over_sequential < 0.995 for row in of_policy)
        starved = sum(row.best_effort_rate < 0.01 for row in of_policy)
        name = f"{policy} ({mode})" if mode else "plain streams" if policy == PLAIN else policy
        print(
            f"{name:24s} total {mean:.2f} of sequential's on the mean of {len(of_policy)} pairs; p99 ≤ {AIM_P99} × alone "
            f"in {calm}, total ≥ {AIM_GAIN} × sequential in {gains}, below sequential in {losses}, best effort "
            f"starved in {starved}"
        )


if __name__ == "__main__":
    sys.exit(main())
