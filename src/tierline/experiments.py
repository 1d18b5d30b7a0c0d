"""Compositions of simulated runs: workload × load × seed × policy -> judged figures. A second composition root, beside
`config.py`: there a daemon is wired, here simulations are.

Every policy of one (load, seed) gets the same workload, cluster, quantum, restart cost and predictor; the workload's
hash stands in the results.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from tierline import __version__
from tierline.backends.jobs.sim import SimBackend, SimOptions, uniform_nodes
from tierline.clock import SimClock
from tierline.core.contracts import JobPolicy
from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.nouns import NS_PER_S, Node
from tierline.perf.bound import workload_bound
from tierline.perf.truth import Record, Workload, clairvoyant_curves
from tierline.policies.jobs import POLICIES, SEES_THE_FUTURE, make_policy, policy_class
from tierline.policies.jobs.packing import GainPacking
from tierline.runtime.driver import Driver
from tierline.runtime.judge import Judgement, SharingFigures, judge, sharing_figures
from tierline.runtime.simulated_runs import LinesJournal, run_tasks, spread
from tierline.schedulers.jobs import JobScheduler, JobSchedulerOptions
from tierline.workloads import Scale, load
from tierline.workloads.pairs import start_of, with_pairs

PAPERS_FOUR = ("fair", "slaq", "gandiva", "oasis")
PAPERS_MEAN_GAIN = 0.8728
"""ExplSched (CLUSTER 2023): average system utility over FAIR, SLAQ, Gandiva and OASiS."""

TYPE_SPEED = {"k80": 1.0, "p100": 3.17, "v100": 3.36}
"""Speed per GPU type: geometric mean over the 26 job types of Gavel's measured throughputs, relative to the K80."""

BOUND_MOST_JOBS = 5000
"""Above this many jobs the bound's linear program is left out (its size grows with jobs × slots)."""

FIGURES = tuple(field.name for field in dataclasses.fields(Judgement))


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is simulated. `policies` as in `parse_policy`; `nodes` the cluster; `jobs` 0 = all of the workload. `pairs`: a
    file of measured pairs (`workloads/pairs.py`) from which jobs get their types and true speeds beside each other;
    `share`: two jobs may share a device."""

    source: str
    nodes: tuple[Node, ...]
    policies: tuple[str, ...]
    jobs: int = 0
    loads: tuple[float, ...] = (1.0,)
    seeds: int = 1
    seed: int = 0
    quantum_ns: int = 60 * NS_PER_S
    restart_ns: int = 30 * NS_PER_S
    fair_by: str = "job"
    stragglers: float = 0.0
    node_loss_per_day: float = 0.0
    pairs: str = ""
    share: bool = False

    def __post_init__(self) -> None:
        if self.share and not self.pairs:
            raise InvalidInput(
                "--share needs --pairs FILE: without measured pairs nobody knows how jobs slow each other."
            )

    @property
    def gpu_types(self) -> tuple[str, ...]:
        """One entry a device."""
        return tuple(device.gpu_type for node in self.nodes for device in node.devices)


@dataclass(frozen=True, slots=True)
class Run:
    """One simulated run, judged. `hash` is the workload's."""

    policy: str
    load: float
    seed: int
    hash: str
    bound: float
    judgement: Judgement
    sharing: SharingFigures | None = None


def parse_nodes(text: str) -> tuple[Node, ...]:
    """`2x8:v100,1x4:a100` -> two nodes of eight V100 and one of four A100. Raises InvalidInput."""
    nodes: list[Node] = []
    for group in text.split(","):
        shape, _, gpu_type = group.partition(":")
        count, x, gpus = shape.partition("x")
        if not (x and count.isdecimal() and gpus.isdecimal() and int(count) and int(gpus)):
            raise InvalidInput(f"--nodes takes COUNTxGPUS[:TYPE],…, as in 2x8:v100,1x4:a100; got '{group}'.")
        prefix = f"{gpu_type or 'gpu'}-{len(nodes)}-"
        nodes += uniform_nodes(int(count) * int(gpus), int(gpus), gpu_type or "gpu", prefix)
    return tuple(nodes)


def parse_policies(text: str) -> tuple[str, ...]:
    """`all`, or names with commas between; a policy may have options: `explsched?priced=false`. Checks all of them."""
    chosen = tuple(POLICIES) if text == "all" else tuple(dict.fromkeys(p.strip() for p in text.split(",") if p.strip()))
    if not chosen:
        raise InvalidInput(f"--policy takes 'all' or names with commas between; known: {', '.join(sorted(POLICIES))}.")
    for policy in chosen:
        parse_policy(policy)
    return chosen


def parse_policy(text: str) -> tuple[str, dict[str, object]]:
    """`name?option=value&…` -> (name, options), values in the type of the policy's default. Raises UnknownName."""
    name, _, query = text.partition("?")
    cls: Any = policy_class(name)
    known = {f.name: f.default for f in dataclasses.fields(cls) if f.init} if dataclasses.is_dataclass(cls) else {}
    options: dict[str, object] = {}
    for key, value in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UnknownName(f"option of policy '{name}'", key, known)
        kind: Any = type(known[key])
        try:
            options[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (KeyError, ValueError, TypeError):
            raise InvalidInput(
                f"option '{key}' of policy '{name}' takes a {kind.__name__}, but got '{value}'."
            ) from None
    return name, options


def build_policy(text: str, workload: Workload) -> JobPolicy:
    """A fresh policy; one that sees the future is handed the workload's true curves."""
    name, options = parse_policy(text)
    if name in SEES_THE_FUTURE:
        options["curves"] = clairvoyant_curves(workload)
    return make_policy(name, options)


@lru_cache(maxsize=2)
def build_workload(
    source: str, nodes: tuple[Node, ...], jobs: int, at_load: float, seed: int, pairs: str = ""
) -> Workload:
    """The workload for this cluster; where it has several GPU types, jobs get the speeds of `TYPE_SPEED`.

    Raises InvalidInput when a job could never run on it.
    """
    types = [device.gpu_type for node in nodes for device in node.devices]
    workload = load(source, Scale(jobs=jobs, gpus=len(types), load=at_load, seed=seed))
    if pairs:
        workload = with_pairs(workload, pairs, seed)
    largest = max(types.count(t) for t in set(types))
    widest = max(workload.entries, key=lambda entry: entry.job.min_gpus).job
    if widest.min_gpus > largest:
        raise InvalidInput(
            f"{widest.job_id} of the workload needs {widest.min_gpus} GPUs of one type at once, "
            f"but the cluster has {largest}."
        )
    named = {t: TYPE_SPEED[t] for t in sorted(set(types)) if t in TYPE_SPEED}
    if len(set(types)) < 2 or not named:
        return workload
    slowest = min(named.values())
    speed = tuple((t, v / slowest) for t, v in named.items())
    entries = tuple(
        entry
        if entry.job.type_speed
        else dataclasses.replace(entry, job=dataclasses.replace(entry.job, type_speed=speed))
        for entry in workload.entries
    )
    return dataclasses.replace(workload, entries=entries)


def simulate(
    workload: Workload, policy: JobPolicy, experiment: Experiment, seed: int = 0, journal: LinesJournal | None = None
) -> Record:
    """One run to its end; the same loop and scheduler as the daemon's."""
    clock = SimClock()
    cluster = SimOptions(
        nodes=experiment.nodes,
        restart_ns=experiment.restart_ns,
        straggler_share=experiment.stragglers,
        node_loss_per_day=experiment.node_loss_per_day,
        seed=seed,
    )
    if experiment.share:
        measured, window_ns, noise = start_of(experiment.pairs, seed)
        cluster = dataclasses.replace(cluster, measured=measured, window_ns=window_ns, noise=noise)
    backend = SimBackend(clock, workload, cluster)
    options = JobSchedulerOptions(
        quantum_ns=experiment.quantum_ns,
        restart_ns=experiment.restart_ns,
        fair_by=experiment.fair_by,  # type: ignore[arg-type]
        seed=seed,
    )
    packing = GainPacking() if experiment.share else None
    Driver(JobScheduler(policy, options, packing), backend, clock, journal).run()
    return backend.record()


@lru_cache(maxsize=4)
def bound_of(experiment: Experiment, at_load: float, seed: int) -> float:
    """The LP bound of exclusive devices, NaN for workloads too large for it."""
    workload = workload_of(experiment, at_load, seed)
    if len(workload.entries) > BOUND_MOST_JOBS:
        return math.nan
    return workload_bound(workload, experiment.gpu_types)


def workload_of(experiment: Experiment, at_load: float, seed: int) -> Workload:
    return build_workload(experiment.source, experiment.nodes, experiment.jobs, at_load, seed, experiment.pairs)


def run_one(experiment: Experiment, policy: str, at_load: float, seed: int, events: Path | None = None) -> Run:
    """Simulate and judge one policy on one workload."""
    workload = workload_of(experiment, at_load, seed)
    bound = bound_of(experiment, at_load, seed)
    built = build_policy(policy, workload)
    if events is None:
        record = simulate(workload, built, experiment, seed)
    else:
        with LinesJournal(events) as journal:
            record = simulate(workload, built, experiment, seed, journal)
    sharing = sharing_figures(record) if experiment.share else None
    return Run(policy, at_load, seed, workload.hash, bound, judge(workload, record, bound), sharing)


def run_all(
    experiment: Experiment,
    workers: int = 1,
    on_run: Callable[[Run], None] = lambda run: None,
    events: Path | None = None,
) -> list[Run]:
    """Every run, in the order load, seed, policy; `on_run` is called as each one is done. `workers` processes.

    `events` asks for the journal of a single run. Raises InvalidInput when there are several.
    """
    tasks = [
        (policy, at_load, experiment.seed + number)
        for at_load in experiment.loads
        for number in range(experiment.seeds)
        for policy in experiment.policies
    ]
    if events is not None and len(tasks) != 1:
        raise InvalidInput(
            f"--events records one run, but this is {len(tasks)}: give one policy, one load and --seeds 1."
        )
    if workers > 1 and len(tasks) > 1:
        workload_of(experiment, experiment.loads[0], experiment.seed)  # what is wrong with it is told once, from here
    return run_tasks(partial(run_one, experiment), [(*task, events) for task in tasks], workers, on_run)


def of_policy(runs: Sequence[Run], policy: str) -> Iterator[Judgement]:
    return (run.judgement for run in runs if run.policy == policy)


def ratios(runs: Sequence[Run], subject: str = "explsched") -> dict[str, float]:
    """Mean utility of `subject` over each of the paper's four, minus one; for those that were run (utility above 0)."""
    means = {policy: spread(j.utility for j in of_policy(runs, policy)).mean for policy in {run.policy for run in runs}}
    if subject not in means:
        return {}
    return {name: means[subject] / means[name] - 1.0 for name in PAPERS_FOUR if means.get(name, 0.0) > 0}


def as_json(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Any]:
    """The results file. One entry per load under `loads`; a single load's entry stands at the top as well."""
    loads = {
        f"{at_load:g}": _load_json(experiment, [run for run in runs if run.load == at_load])
        for at_load in experiment.loads
    }
    only = next(iter(loads.values())) if len(loads) == 1 else {}
    return {
        "tierline": __version__,
        "source": _public_name(experiment.source),
        "cluster": [f"{node.name}: {len(node.devices)} × {node.devices[0].gpu_type}" for node in experiment.nodes],
        "quantum_s": experiment.quantum_ns / NS_PER_S,
        "restart_s": experiment.restart_ns / NS_PER_S,
        "fair_by": experiment.fair_by,
        "paper_mean_gain": PAPERS_MEAN_GAIN,
        **({"pairs": _public_name(f":{experiment.pairs}")[1:], "share": experiment.share} if experiment.pairs else {}),
        **only,
        "loads": loads,
    }


def _load_json(experiment: Experiment, runs: Sequence[Run]) -> dict[str, Any]:
    first = runs[0]
    workload = workload_of(experiment, first.load, first.seed)
    found = ratios(runs)
    policies: dict[str, Any] = {}
    for policy in experiment.policies:
        seeds = [dataclasses.asdict(run.judgement) for run in runs if run.policy == policy]
        spreads = {figure: spread(seed[figure] for seed in seeds) for figure in FIGURES}
        policies[policy] = {
            "sees_the_future": policy.partition("?")[0] in SEES_THE_FUTURE,
            "mean": {figure: _finite(s.mean) for figure, s in spreads.items()},
            "half_width_95": {figure: _finite(s.half) for figure, s in spreads.items()},
            "seeds": [{figure: _finite(value) for figure, value in seed.items()} for seed in seeds],
        }
        shared = [dataclasses.asdict(run.sharing) for run in runs if run.policy == policy and run.sharing is not None]
        if shared:
            policies[policy]["sharing"] = {
                "mean": {figure: _finite(spread(seed[figure] for seed in shared).mean) for figure in shared[0]},
                "seeds": [{figure: _finite(value) for figure, value in seed.items()} for seed in shared],
            }
    return {
        "load": first.load,
        "recipe": dataclasses.asdict(workload.recipe),  # type: ignore[call-overload]
        "workloads": [
            {"seed": seed, "hash": digest, "bound": _finite(bound)}
            for seed, digest, bound in dict.fromkeys((run.seed, run.hash, run.bound) for run in runs)
        ],
        "policies": policies,
        "ratios": {**found, "mean": sum(found.values()) / len(found)} if found else {},
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _public_name(source: str) -> str:
    """The source without the folders of this machine."""
    head, mark, query = source.partition("?")
    name, colon, path = head.partition(":")
    return f"{name}{colon}{Path(path).name if path else ''}{mark}{query}"
