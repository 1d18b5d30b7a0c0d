"""Two jobs on one device against one: the same arrivals with and without sharing, five workloads a load.

Jobs get a measured type each (Gavel's, by seed), and run beside each other at the true speeds of its V100 pairs. What the
predictor starts from differs by variant; corrections come from slowdowns seen after 60 s of a pair, with 5 % noise:

- exclusive      every device has one job
- sharing        starts from the P100's pairs, as a user would who measured elsewhere
- no correction  the same, but no slowdown is ever seen
- hidden         starts from the true pairs less a third of them, of which nothing is known
- oracle         starts from the true pairs

Repeat with:

    python benchmarks/job_sharing.py taskset:DIR --pairs FILE --json docs/results/job_sharing.json
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tierline import __version__
from tierline.backends.jobs.sim import uniform_nodes
from tierline.core.errors import TierlineError
from tierline.experiments import (
    Experiment,
    bound_of,
    build_policy,
    parse_policies,
    simulate,
    spread,
    workload_of,
)
from tierline.runtime.judge import judge, sharing_figures

VARIANTS = {
    "exclusive": None,
    "sharing": "start=p100",
    "no correction": "start=p100&window=0",
    "hidden": "start=v100&hidden=0.33",
    "oracle": "start=v100",
}


def one_workload(experiment: Experiment, pairs: str, load: float, seed: int) -> list[dict[str, Any]]:
    """Every variant and policy on one workload; a flat row each."""
    rows: list[dict[str, Any]] = []
    plain = dataclasses.replace(experiment, pairs=pairs)
    bound = bound_of(plain, load, seed)
    for variant, options in VARIANTS.items():
        setting = plain if options is None else dataclasses.replace(plain, pairs=f"{pairs}?{options}", share=True)
        workload = workload_of(setting, load, seed)
        for policy in experiment.policies:
            record = simulate(workload, build_policy(policy, workload), setting, seed)
            row: dict[str, Any] = {"load": load, "seed": seed, "variant": variant, "policy": policy}
            row |= {"hash": workload.hash, "bound": bound, **dataclasses.asdict(judge(workload, record, bound))}
            row |= dataclasses.asdict(sharing_figures(record))
            rows.append({key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in row.items()})
    return rows


def summary(rows: list[dict[str, Any]], loads: list[float], policies: tuple[str, ...]) -> list[dict[str, Any]]:
    """Per load, policy and variant: means, and the change of utility against exclusive devices paired by workload."""
    found = []
    for load in loads:
        for policy in policies:
            own = [row for row in rows if row["load"] == load and row["policy"] == policy]
            alone = {row["seed"]: row for row in own if row["variant"] == "exclusive"}
            for variant in VARIANTS:
                runs = [row for row in own if row["variant"] == variant]
                figures = [key for key, value in runs[0].items() if isinstance(value, int | float) and key != "seed"]
                entry: dict[str, Any] = {"load": load, "policy": policy, "variant": variant}
                entry["mean"] = {k: spread(r[k] for r in runs if r[k] is not None).mean for k in figures}
                for figure in ("utility", "utility_auc", "mean_jct_s"):
                    change = spread(run[figure] / alone[run["seed"]][figure] - 1.0 for run in runs)
                    entry[f"{figure}_change"] = {"mean": change.mean, "half_width_95": change.half}
                found.append(entry)
    return found


def show(entries: list[dict[str, Any]]) -> None:
    """A Markdown table a load."""
    for load in dict.fromkeys(entry["load"] for entry in entries):
        print(f"\n### Load {load:g}\n")
        print(
            "| policy | devices | utility | change, % | of exclusive bound, % | mean utility, change % | mean JCT, change % "
            "| pairs | bad | bad GPU-h | a bad one lasts, s | guests sent away | shared GPU-h | speeds of a pair |"
        )
        print("|---|---|---|---|---|---|---|---|---|---|---|---|---|---|")
        for entry in (e for e in entries if e["load"] == load):
            mean, shared = entry["mean"], entry["variant"] != "exclusive"
            change = entry["utility_change"]
            cells = [entry["policy"], entry["variant"], f"{mean['utility']:.2f}"]
            cells += [f"{change['mean']:+.1%} ± {change['half_width_95']:.1%}".replace("%", "") if shared else ""]
            cells += [f"{mean.get('of_bound', math.nan):.1%}".replace("%", "")]
            for figure in ("utility_auc_change", "mean_jct_s_change"):
                cells.append(f"{entry[figure]['mean']:+.1%}".replace("%", "") if shared else "")
            if shared:
                cells += [f"{mean['packs']:.0f}", f"{mean['bad']:.0f}", f"{mean['bad_gpu_s'] / 3600:.1f}"]
                cells += [f"{mean['mean_bad_s']:.0f}", f"{mean['unpacks']:.0f}", f"{mean['shared_gpu_s'] / 3600:.0f}"]
                cells += [f"{mean.get('mean_speeds', math.nan):.2f}"]
            else:
                cells += [""] * 7
            print(f"| {' | '.join(cells)} |")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", nargs="?", default="exploratory", help="as in `tierline simulate jobs`")
    parser.add_argument("--pairs", required=True, metavar="FILE", help="Gavel's measured pairs")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--gpus", type=int, default=16)
    parser.add_argument("--loads", default="1,2,4,8")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--policy", default="explsched,fair,fifo,las")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--json", default="", metavar="FILE|-")
    given = parser.parse_args()
    begun = time.perf_counter()
    try:
        loads = [float(load) for load in given.loads.split(",")]
        policies = parse_policies(given.policy)
        experiment = Experiment(given.source, uniform_nodes(given.gpus), policies, jobs=given.jobs)
        rows: list[dict[str, Any]] = []
        with ProcessPoolExecutor(given.workers, mp_context=get_context("spawn")) as pool:
            tasks = [
                pool.submit(one_workload, experiment, given.pairs, load, seed)
                for load in loads
                for seed in range(given.seeds)
            ]
            for number, task in enumerate(as_completed(tasks), 1):
                rows += task.result()
                print(f"{time.perf_counter() - begun:6.0f} s  {number} of {len(tasks)} workloads", file=sys.stderr)
    except TierlineError as error:
        print(f"job_sharing: {error}", file=sys.stderr)
        return 2
    rows.sort(key=lambda row: (row["load"], row["seed"], row["policy"], list(VARIANTS).index(row["variant"])))
    entries = summary(rows, loads, policies)
    found = {
        "tierline": __version__,
        "source": f"{given.source.partition(':')[0]}",
        "pairs": Path(given.pairs).name,
        "jobs": given.jobs,
        "gpus": given.gpus,
        "seeds": given.seeds,
        "variants": VARIANTS,
        "note": "The bound is that of exclusive devices: with sharing of_bound may exceed 1.",
        "summary": entries,
        "runs": rows,
    }
    if given.json == "-":
        print(json.dumps(found, indent=1))
        return 0
    show(entries)
    if given.json:
        Path(given.json).parent.mkdir(parents=True, exist_ok=True)
        Path(given.json).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
