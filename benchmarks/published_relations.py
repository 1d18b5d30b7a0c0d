"""Does each baseline show what its own paper says of it? One relation a baseline, on synthetic exploratory
sweeps, or on the Philly trace where the claim is about heavy-tailed durations.

    python benchmarks/published_relations.py --seeds 5 --philly philly_jobs.csv.gz --json out.json

Only the direction of a relation is to be reproduced; the papers' clusters, models and loads differ. Every policy runs
with the same workload, predictor, quantum and restart cost.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tierline.backends.jobs.sim import uniform_nodes
from tierline.experiments import Experiment, build_policy, build_workload, simulate
from tierline.perf.truth import Record, Workload
from tierline.runtime.judge import judge

Measure = Callable[[Workload, Record], float]


def mean_jct_s(workload: Workload, record: Record) -> float:
    return judge(workload, record).mean_jct_s


def utility_auc(workload: Workload, record: Record) -> float:
    return judge(workload, record).utility_auc


def utility(workload: Workload, record: Record) -> float:
    return judge(workload, record).utility


def best_regret(workload: Workload, record: Record) -> float:
    return judge(workload, record).best_regret


def mean_first_feedback_s(workload: Workload, record: Record) -> float:
    """Mean time from arrival to the first start, when a job's first report comes."""
    first: dict[int, int] = {}
    for segment in record.segments:
        first[segment.row] = min(first.get(segment.row, segment.start_ns), segment.start_ns)
    return float(np.mean([start - workload.entries[row].time_ns for row, start in first.items()])) / 1e9


def short_job_jct_s(workload: Workload, record: Record) -> float:
    """Mean completion time of the shorter half of the jobs."""
    work = [e.truth.duration_s * e.truth.end_fraction for e in workload.entries]
    short = np.asarray(work) <= np.median(work)
    jct = np.array([(end - e.time_ns) / 1e9 for end, e in zip(record.end_ns, workload.entries, strict=True)])
    return float(jct[short].mean())


@dataclass(frozen=True, slots=True)
class Relation:
    """`better` is to be ahead of `worse` on `measure`; `more` says whether more of it is better."""

    paper: str
    claim: str
    better: str
    worse: str
    measure: Measure
    more: bool
    source: str = "exploratory"
    load: float = 4.0
    jobs: int = 200
    gpus: int = 16


RELATIONS = (
    Relation("fair (processor sharing)", "short jobs do not wait behind long ones", "fair", "fifo", short_job_jct_s, False,
             "philly", 1.0, 2000, 128),
    Relation("SLAQ, SoCC'17", "average quality over fair sharing (paper: +73 %)", "slaq", "fair", utility_auc, True),
    Relation("Tiresias, NSDI'19", "mean completion time below FIFO, durations unknown", "las", "fifo", mean_jct_s, False,
             "philly", 1.0, 2000, 128),
    Relation("Gandiva, OSDI'18", "early feedback: new jobs start at once", "gandiva", "fifo", mean_first_feedback_s, False),
    Relation("OASiS, INFOCOM'18", "total utility over FIFO under contention", "oasis", "fifo", utility, True),
    Relation("ASHA, MLSys'20", "good trials sooner than by running all to the end", "asha", "fifo", best_regret, False),
    Relation("SRTF, Schrage '68", "least mean completion time", "srtf", "fair", mean_jct_s, False),
    Relation("Optimus, EuroSys'18", "mean completion time below fair sharing", "optimus", "fair", mean_jct_s, False,
             "exploratory?elastic=0.5", 1.5),
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--philly", default="", metavar="FILE", help="Philly trace, for the relations about heavy tails"
    )
    parser.add_argument("--json", default="", metavar="FILE")
    args = parser.parse_args()
    rows = []
    print(f"{'relation':<74}{'ahead':>10}{'behind':>10}{'ratio':>8}  holds in")
    for relation in RELATIONS:
        print(f"\r{relation.better} ...", end="", file=sys.stderr, flush=True)
        ahead, behind, held = [], [], 0
        source = relation.source
        if source == "philly":
            if not args.philly:
                print(f"\r{relation.paper}: left out, it needs --philly FILE")
                continue
            source = f"philly:{args.philly}"
        nodes = uniform_nodes(relation.gpus)
        for seed in range(args.seeds):
            experiment = Experiment(source, nodes, (relation.better,), jobs=relation.jobs, loads=(relation.load,))
            workload = build_workload(source, nodes, relation.jobs, relation.load, seed)
            a, b = (
                relation.measure(workload, simulate(workload, build_policy(name, workload), experiment, seed))
                for name in (relation.better, relation.worse)
            )
            ahead.append(a)
            behind.append(b)
            held += a > b if relation.more else a < b
        ratio = float(np.mean(ahead) / np.mean(behind))
        name = f"{relation.paper}: {relation.better} vs {relation.worse}, {relation.claim}"
        print(f"\r{name:<74}{np.mean(ahead):>10.4g}{np.mean(behind):>10.4g}{ratio:>8.3f}  {held} of {args.seeds} seeds")
        rows.append(
            {
                "paper": relation.paper, "claim": relation.claim, "better": relation.better, "worse": relation.worse,
                "measure": relation.measure.__name__, "source": relation.source, "load": relation.load,
                "jobs": relation.jobs, "gpus": relation.gpus,
                "ahead": ahead, "behind": behind, "ratio": ratio, "held": held,
            }
        )  # fmt: skip
    if args.json:
        with open(args.json, "w", encoding="utf-8") as file:
            json.dump({"seeds": args.seeds, "relations": rows}, file, indent=2)


if __name__ == "__main__":
    main()
