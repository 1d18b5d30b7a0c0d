"""How far posted prices can fall behind the offline optimum: the guarantee's own case, and without its assumptions.

    python benchmarks/price_ratio.py --instances 10000 --json out.json

Ratio = LP optimum / utility won online; 1.0 is perfect. `guaranteed`: small bids, known L and U (must stay below 2α).
`exact`: any bids, known L and U. `learning`: any bids, L and U learnt from the bids seen so far.
"""

from __future__ import annotations

import argparse
import json
import random
import sys

import numpy as np

from tierline.testing.primal_dual import any_bids, exact_prices, guaranteed_ratio, run_learning, run_online, small_bids


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--instances", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", default="", metavar="FILE")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    of_guarantee, guaranteed, exact, learning = [], [], [], []
    for number in range(args.instances):
        if number % 500 == 0:
            print(f"\r{number}/{args.instances}", end="", file=sys.stderr, flush=True)
        instance = any_bids(rng)
        optimum = instance.optimum()
        exact.append(optimum / max(run_online(instance, exact_prices(instance, optimum)), 1e-12))
        learning.append(optimum / max(run_learning(instance), 1e-12))
        if number % 10 == 0:
            instance = small_bids(rng)
            optimum = instance.optimum()
            prices = exact_prices(instance, optimum)
            ratio = optimum / max(run_online(instance, prices), 1e-12)
            guaranteed.append(ratio)
            of_guarantee.append(ratio / guaranteed_ratio(prices, 1.0 / instance.capacity[0]))
    print("\r", end="", file=sys.stderr)
    result = {
        "instances": args.instances,
        "seed": args.seed,
        "guaranteed": summary(guaranteed),
        "share_of_guarantee_used": summary(of_guarantee),
        "exact": summary(exact),
        "learning": summary(learning),
    }
    print(f"{'case':<24}{'instances':>10}{'median':>10}{'p99':>12}{'worst':>12}")
    for name in ("guaranteed", "share_of_guarantee_used", "exact", "learning"):
        row = result[name]
        print(f"{name:<24}{row['count']:>10}{row['median']:>10.2f}{row['p99']:>12.2f}{row['worst']:>12.2f}")
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=2)


def summary(values: list[float]) -> dict[str, float]:
    array = np.asarray(values)
    return {
        "count": len(values),
        "median": float(np.median(array)),
        "p99": float(np.quantile(array, 0.99)),
        "worst": float(array.max()),
    }


if __name__ == "__main__":
    main()
