"""Compositions of simulated serving runs: workload × rate × seed × preset -> judged figures, as `experiments.py` for jobs.

Every preset of one (rate, seed) gets the same trace, device times, number of instances, SLO and limits; the trace's hash
stands in the results.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from tierline import __version__
from tierline.backends.serving.sim import Kill, SimOptions, SimServing, limits_of
from tierline.backends.serving.sim_instance import DeviceOptions
from tierline.clock import SimClock
from tierline.core.errors import InvalidInput
from tierline.core.nouns import NS_PER_S
from tierline.core.request import Role
from tierline.core.served_outcome import ServedOutcome
from tierline.core.served_trace import ServedTrace
from tierline.core.slo import Slo
from tierline.core.stage_times import StageTimes
from tierline.perf.device_times import stage_times
from tierline.perf.stage_time_online import PartedTimes
from tierline.presets import ServingPreset, preset_of
from tierline.runtime import serving_report
from tierline.runtime.driver import Driver
from tierline.runtime.serving_report import ServingReport
from tierline.runtime.simulated_runs import LinesJournal, run_tasks, spread
from tierline.schedulers.serving import ServingScheduler
from tierline.workloads.serving import load_served

UNLIMITED = 1 << 40
SEQUENCES = 256  # in an iteration at most
WARM_UP = 0.1  # of the time of arrivals, left out of the figures

HEADLINES = ("goodput_per_s", "attainment", "requests_per_s", "output_tokens_per_s")


@dataclass(frozen=True, slots=True)
class ServingSetup:
    """What presets share. `times`: as `perf.device_times.stage_times` takes it (`h100:Qwen2.5-VL-7B`, FILE.toml,
    `tables:FOLDER:…`). `token_budget` 0 = the preset's. `block_tokens`: four times a live engine's; that is finer than any
    prefix that is worth a hit, and blocks are a good part of what a simulated request costs. `kills`: scripted deaths.
    `min_instances`, `max_instances`: between which policies start, put to sleep, wake and stop them (0 = they do not);
    `start_ns` and `wake_ns` are what that takes."""

    times: str = "h100:Qwen2.5-VL-7B"
    instances: int = 8
    slo: Slo = field(default_factory=Slo)
    token_budget: int = 0
    block_tokens: int = 64
    cpu_workers: int = 16
    latency_ns: int = NS_PER_S // 5000
    start_ns: int = 10 * NS_PER_S
    wake_ns: int = 2 * NS_PER_S
    min_instances: int = 1
    max_instances: int = 0
    kills: tuple[Kill, ...] = ()
    lockstep: bool = True

    def __post_init__(self) -> None:
        if self.instances < 1:
            raise InvalidInput(f"--instances {self.instances}: 1 or more is needed.")
        if self.max_instances and not 0 <= self.min_instances <= self.instances <= self.max_instances:
            raise InvalidInput(
                f"{self.min_instances} to {self.max_instances} instances, {self.instances} at the start: these must be in "
                "order."
            )


@dataclass(frozen=True, slots=True)
class ServingExperiment:
    """What is simulated. `source` as `load_served` takes it; `rates` in requests/s, 0 = as the workload has it; `seconds`
    and `requests` as well."""

    source: str
    policies: tuple[str, ...]
    setup: ServingSetup = field(default_factory=ServingSetup)
    rates: tuple[float, ...] = (0.0,)
    seconds: float = 0.0
    requests: int = 0
    seeds: int = 1
    seed: int = 0


@dataclass(frozen=True, slots=True)
class ServingRun:
    """One simulated run, judged. `counts`: what schedulers and instances did."""

    policy: str
    rate: float
    seed: int
    workload_hash: str
    report: ServingReport
    counts: dict[str, float]


def parse_presets(text: str) -> tuple[str, ...]:
    """Names with commas between (those within a layout do not count). Checks all of them. Raises `UnknownName` or
    `InvalidInput`.

    >>> parse_presets("adaptive,static:E,2PD,coupled")
    ('adaptive', 'static:E,2PD', 'coupled')
    """
    names: list[str] = []
    for part in (each.strip() for each in text.split(",")):
        if names and names[-1].startswith("static:") and part and set(part) <= set("EPDepd0123456789+|"):
            names[-1] += f",{part}"
        elif part:
            names.append(part)
    if not names:
        raise InvalidInput("--policy takes names of presets with commas between, as in adaptive,coupled,static:2E2P4D.")
    for name in names:
        preset_of(name)
    return tuple(dict.fromkeys(names))


def parse_kill(text: str) -> Kill:
    """`i3@12.5` -> instance i3 dies after 12.5 seconds. Raises `InvalidInput`."""
    name, at, seconds = text.partition("@")
    try:
        after_s = float(seconds)
    except ValueError:
        after_s = math.nan
    if not (name and at and 0.0 <= after_s < 1e9):
        raise InvalidInput(f"--kill takes NAME@SECONDS, as in i3@12.5; got '{text}'.")
    return Kill(round(after_s * NS_PER_S), name)


@lru_cache(maxsize=4)
def times_of(name: str) -> PartedTimes:
    """Stage times by name, made once a process."""
    return stage_times(name)


@lru_cache(maxsize=2)
def trace_of(source: str, rate: float, seconds: float, requests: int, seed: int) -> ServedTrace:
    """The workload, made once a process. Raises as `load_served` does."""
    return load_served(source, rate=rate, seconds=seconds, requests=requests, seed=seed)


def options_of(preset: ServingPreset, times: StageTimes, setup: ServingSetup) -> tuple[SimOptions, ServingScheduler]:
    """The deployment of a preset and its scheduler, fresh. Raises `InvalidInput` where the numbers of instances differ."""
    preset = preset.between(setup.min_instances, setup.max_instances)
    slots = preset.layout(setup.instances)
    changes: dict[str, Any] = {
        "block_tokens": setup.block_tokens,
        "token_budget": setup.token_budget or preset.token_budget,
        "sequence_limit": SEQUENCES,
        "prefix_caching": preset.prefix_caching,
    }
    if not preset.image_caching:
        changes["pool_bytes"] = 0  # what is in use stays until it is computed
    options = SimOptions(
        roles=tuple(slot.roles for slot in slots),
        limits=limits_of(times, **changes),
        batching=lambda: preset.make_batching(times, setup.slo),
        device=DeviceOptions(preset.encoder),
        cpu_workers=setup.cpu_workers,
        latency_ns=setup.latency_ns,
        start_ns=setup.start_ns,
        wake_ns=setup.wake_ns,
        kills=setup.kills,
        lockstep=setup.lockstep,
    )
    named = {f"i{number}": slot for number, slot in enumerate(slots)}
    scheduler = preset.make_scheduler(named, times=times, slo=setup.slo, queue_limit=UNLIMITED)
    return options, scheduler


def simulate(
    trace: ServedTrace, preset: ServingPreset, setup: ServingSetup, journal: LinesJournal | None = None
) -> tuple[SimServing, ServingScheduler]:
    """One run to its end; the same loop and schedulers as a live deployment's.

    Raises `InvalidInput` for images where some are asked for and nobody may encode them."""
    times = times_of(setup.times)
    options, scheduler = options_of(preset, times, setup)
    able = Role(0)
    for roles in options.roles:
        able |= roles
    if Role.ENCODE not in able and any(request.images for request in trace.requests):
        raise InvalidInput(f"policy '{preset.name}': the workload has images, and no instance may encode them.")
    clock = SimClock()
    backend = SimServing(clock, trace, times, options, scheduler.tick_ns)
    collecting = gc.isenabled()
    gc.disable()  # nothing here refers to itself, and there is much of it
    try:
        Driver(scheduler, backend, clock, journal).run()
    finally:
        if collecting:
            gc.enable()
    return backend, scheduler


def judge(outcomes: Sequence[ServedOutcome], setup: ServingSetup) -> ServingReport:
    """The report of a run, its warm-up left out. Requests that came within it count by arrival, however late they end."""
    first, last = outcomes[0].arrived_ns, outcomes[-1].arrived_ns
    window = (first + round(WARM_UP * (last - first)), last + 1)
    return serving_report.report(outcomes, setup.slo, setup.instances, window)


def counts_of(backend: SimServing, scheduler: ServingScheduler, outcomes: Sequence[ServedOutcome]) -> dict[str, float]:
    """What was done, for people: decisions of the scheduler, transfers, and sums over the instances that are left."""
    statuses = [instance.status() for instance in backend.instances]
    until_ns = max((outcome.finished_ns for outcome in outcomes), default=0)
    queries = sum(status.prefix_queries for status in statuses)
    held_ns = backend.held_ns(until_ns)
    found: dict[str, float] = {**scheduler.counts, **backend.counts}
    found.pop("held_ns", None)
    found["device_s"] = held_ns / NS_PER_S
    found["iterations"] = sum(instance.iterations for instance in backend.instances)
    found["busy_share"] = sum(each.busy_ns for each in backend.instances) / max(1, held_ns)
    found["preemptions"] = sum(status.preemptions for status in statuses)
    found["encoded_images"] = sum(status.encoded_images for status in statuses)
    found["prefix_hit_share"] = sum(status.prefix_hits for status in statuses) / queries if queries else 0.0
    found["image_hit_share"] = scheduler.image_hits / scheduler.image_queries if scheduler.image_queries else 0.0
    return found


def run_one(
    experiment: ServingExperiment, policy: str, rate: float, seed: int, events: Path | None = None
) -> ServingRun:
    """Simulate and judge one preset on one workload."""
    trace = trace_of(experiment.source, rate, experiment.seconds, experiment.requests, seed)
    preset = preset_of(policy)
    if events is None:
        backend, scheduler = simulate(trace, preset, experiment.setup)
    else:
        with LinesJournal(events) as journal:
            backend, scheduler = simulate(trace, preset, experiment.setup, journal)
    outcomes = backend.outcomes()
    return ServingRun(
        policy=policy,
        rate=rate,
        seed=seed,
        workload_hash=trace.workload_hash,
        report=judge(outcomes, experiment.setup),
        counts=counts_of(backend, scheduler, outcomes),
    )


def run_all(
    experiment: ServingExperiment,
    workers: int = 1,
    on_run: Callable[[ServingRun], None] = lambda run: None,
    events: Path | None = None,
) -> list[ServingRun]:
    """Every run, in the order rate, seed, policy; `on_run` is called as each one is done. `workers` processes.

    `events` asks for the journal of a single run. Raises `InvalidInput` when there are several.
    """
    tasks = [
        (policy, rate, experiment.seed + number)
        for rate in experiment.rates
        for number in range(experiment.seeds)
        for policy in experiment.policies
    ]
    if events is not None and len(tasks) != 1:
        raise InvalidInput(
            f"--events records one run, but this is {len(tasks)}: give one policy, one rate and --seeds 1."
        )
    for policy in experiment.policies:
        options_of(preset_of(policy), times_of(experiment.setup.times), experiment.setup)
    trace_of(experiment.source, experiment.rates[0], experiment.seconds, experiment.requests, experiment.seed)
    return run_tasks(partial(run_one, experiment), [(*task, events) for task in tasks], workers, on_run)


# --- results


def as_json(experiment: ServingExperiment, runs: Sequence[ServingRun]) -> dict[str, Any]:
    """The results file: `rates` -> `policies` -> figures of each seed, and mean and half of the 95 % interval over seeds."""
    setup = experiment.setup
    return {
        "tierline": __version__,
        "source": _public_source(experiment.source),
        "times": _public_times(setup.times),
        "instances": setup.instances,
        **({"min_max_instances": [setup.min_instances, setup.max_instances]} if setup.max_instances else {}),
        "slo": asdict(setup.slo),
        "latency_s": setup.latency_ns / NS_PER_S,
        "cpu_workers": setup.cpu_workers,
        "rates": {
            f"{rate:g}": {
                "workloads": {run.seed: run.workload_hash for run in runs if run.rate == rate},
                "policies": {
                    policy: _policy_json([run for run in runs if (run.rate, run.policy) == (rate, policy)])
                    for policy in experiment.policies
                },
            }
            for rate in experiment.rates
        },
    }


def _policy_json(runs: Sequence[ServingRun]) -> dict[str, Any]:
    seeds = [{"seed": run.seed, **_plain(asdict(run.report)), "counts": _plain(run.counts)} for run in runs]
    figures: dict[str, Any] = {}
    for kind in ("all", "text", "images"):
        for name in HEADLINES:
            figures[f"{kind}.{name}"] = [getattr(getattr(run.report, kind), name) for run in runs]
        for name in ("ttft", "tpot", "e2e"):
            for part in ("mean", "p50", "p90", "p99"):
                values = [getattr(getattr(getattr(run.report, kind), name), part) for run in runs]
                figures[f"{kind}.{name}.{part}"] = values
    spreads = {name: spread(values) for name, values in figures.items() if not any(map(math.isnan, values))}
    return {
        "mean": {name: each.mean for name, each in spreads.items()},
        "half_width_95": {name: each.half for name, each in spreads.items()},
        "seeds": seeds,
    }


def _plain(value: Any) -> Any:
    """NaN has no JSON: None."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _public_source(source: str) -> str:
    """Without the folders that files are in on this machine."""
    parts = []
    for part in source.split("+"):
        name, colon, rest = part.partition(":")
        path, question, query = rest.partition("?")
        parts.append(f"{name}{colon}{Path(path).name if path else ''}{question}{query}")
    return "+".join(parts)


def _public_times(name: str) -> str:
    if name.endswith(".toml"):
        return Path(name).name
    if name.startswith("tables:"):
        return "tables:" + name.split(":", 2)[2]
    return name
