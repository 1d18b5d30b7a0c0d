"""Pairs of programs under each policy, against each program alone and against one after another.

A pair's total is the sum of both programs' throughput relative to alone: 1 is what one device gives anyhow, 2 the most.
Figures are ratios of means over the seeds; p99 is over the requests or iterations of all seeds together. Alone, a program
runs without Tierline, with the same arrivals.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace

from tierline.backends.kernels.sim import KernelOutcome, KernelScenario, SimulatedClient, simulate, to_native
from tierline.core.errors import UnknownName
from tierline.core.nouns import NS_PER_S
from tierline.kernels.native import load
from tierline.policies.kernels import KernelMode

PLAIN = "plain"
"""No Tierline: both programs' streams at equal priority."""
YARDSTICK = "sequential"
HAVE_MODES = ("interference",)
"""Policies that the mode matters to."""
LEAST_REQUESTS = 300
SHORTEST_NS, LONGEST_NS = 2 * NS_PER_S, 12 * NS_PER_S

PICTURED_NS = NS_PER_S // 50


@dataclass(frozen=True, slots=True)
class Comparison:
    """What to run. `policies` may hold `plain`; `sequential` runs in any case."""

    pairs: tuple[str, ...]
    policies: tuple[str, ...]
    modes: tuple[KernelMode, ...] = ("latency",)
    device: str = "h200"
    profiles: str = "exact"
    seeds: int = 1
    seed: int = 0
    alpha: float | None = None
    beta: float | None = None


@dataclass(frozen=True, slots=True)
class PairRow:
    """One pair under one policy. `mode` is empty where the policy knows none. Rates are relative to alone, `high_p99` is
    p99 relative to alone, `over_sequential` this total over that of `sequential`. `*_peak`, `excess_*`: the device's true
    sums while both ran, and their time and largest size over the limits, as a share of the whole time."""

    pair: str
    high: str
    best_effort: str
    policy: str
    mode: str
    high_rate: float
    best_effort_rate: float
    total: float
    over_sequential: float
    high_p50: float
    high_p99: float
    shared: float
    sm_peak: float
    bw_peak: float
    excess_share: float
    excess_most: float
    forced: int
    longest_wait_ms: float
    events_per_launch: float
    stuck: bool


@dataclass(frozen=True, slots=True)
class _Cell:
    pair: str
    policy: str | None  # None: alone
    mode: KernelMode
    scenarios: tuple[KernelScenario, ...]


@dataclass(frozen=True, slots=True)
class _Figures:
    """A client over all seeds."""

    per_s: float
    p50_ns: int
    p99_ns: int


def pair_names() -> tuple[str, ...]:
    """The pairs of the frozen truth, in its order. Raises `MissingNative`."""
    load()
    from tierline import _native

    return tuple(pair.name for pair in _native.pairs())


def pair_descriptions() -> list[tuple[str, str, str, str]]:
    """Of each pair: its name, both programs, and why it is in the set. Raises `MissingNative`."""
    load()
    from tierline import _native

    return [(pair.name, pair.high, pair.best_effort, pair.what) for pair in _native.pairs()]


def policy_names() -> tuple[str, ...]:
    """All that can be compared, ours first. Raises `MissingNative`."""
    load()
    from tierline import _native

    return (*_native.POLICIES, PLAIN)


def truth_hash() -> str:
    """sha256 of the frozen simulated device, programs and pairs; empty while it is not frozen."""
    load()
    from tierline import _native

    return _native.TRUTH


def count_runs(comparison: Comparison) -> int:
    """How often `compare` will call `on_run`."""
    return sum(1 for _ in _cells(comparison))


def compare(
    comparison: Comparison, workers: int = 1, on_run: Callable[[str], None] = lambda what: None
) -> list[PairRow]:
    """Run all of it, in `workers` processes; the order of the rows does not depend on that.

    Raises `UnknownName`, `InvalidInput`, `MissingNative`.
    """
    for name in comparison.pairs:
        if name not in pair_names():
            raise UnknownName("pair", name, pair_names())
    for name in comparison.policies:
        if name not in policy_names():
            raise UnknownName("kernel policy", name, policy_names())
    cells = list(_cells(comparison))
    if cells:
        to_native(cells[0].scenarios[0])  # what is wrong is told here: not every error can leave a worker process
    outcomes = {}
    with ProcessPoolExecutor(workers) if workers > 1 else nullcontext() as pool:
        run_all = pool.map(_run, cells) if pool is not None else map(_run, cells)
        for cell, seen in zip(cells, run_all, strict=True):
            outcomes[cell] = seen
            on_run(f"{cell.pair}, {cell.policy or 'alone'}")
    rows = []
    for pair in comparison.pairs:
        of_pair = [cell for cell in cells if cell.pair == pair]
        alone = [_figures(outcomes[cell], 0) for cell in of_pair if cell.policy is None]
        totals = {cell: _total(outcomes[cell], alone) for cell in of_pair if cell.policy is not None}
        yardstick = next(total for cell, total in totals.items() if cell.policy == YARDSTICK)
        rows += [
            _row(cell, outcomes[cell], alone, total / yardstick)
            for cell, total in totals.items()
            if cell.policy in comparison.policies
        ]
    return rows


def _cells(comparison: Comparison) -> Iterator[_Cell]:
    """Of each pair: both programs alone, then together under each policy and mode."""
    load()
    from tierline import _native

    programs = {program.name: program for program in _native.programs()}
    policies = tuple(dict.fromkeys((*comparison.policies, YARDSTICK)))
    for pair in _native.pairs():
        if pair.name not in comparison.pairs:
            continue
        rate = programs[pair.high].arrivals_per_s
        wanted_ns = round(LEAST_REQUESTS / rate * NS_PER_S) if rate > 0 else SHORTEST_NS
        duration_ns = min(max(wanted_ns, SHORTEST_NS), LONGEST_NS)
        high = SimulatedClient(pair.high, "high")
        best_effort = SimulatedClient(pair.best_effort, "best-effort")

        def scenarios(
            clients: tuple[SimulatedClient, ...], policy: str | None, mode: KernelMode, duration_ns: int = duration_ns
        ) -> tuple[KernelScenario, ...]:
            return tuple(
                KernelScenario(
                    clients=clients,
                    policy=policy,
                    mode=mode,
                    device=comparison.device,
                    profiles=comparison.profiles,
                    alpha=comparison.alpha,
                    beta=comparison.beta,
                    seed=seed,
                    duration_ns=duration_ns,
                    warmup_ns=duration_ns // 10,
                )
                for seed in range(comparison.seed, comparison.seed + comparison.seeds)
            )

        for client in (high, best_effort):
            yield _Cell(pair.name, None, "latency", scenarios((client,), None, "latency"))
        for policy in policies:
            for mode in comparison.modes if policy in HAVE_MODES else comparison.modes[:1]:
                native = None if policy == PLAIN else policy
                yield _Cell(pair.name, policy, mode, scenarios((high, best_effort), native, mode))


def picture_scenario(comparison: Comparison) -> KernelScenario:
    """The first pair under the first policy, with the sums kept."""
    cells = _cells(replace(comparison, pairs=comparison.pairs[:1]))
    cell = next(cell for cell in cells if cell.policy == comparison.policies[0])
    warmup_ns = cell.scenarios[0].warmup_ns
    return replace(cell.scenarios[0], keep_sums=True, duration_ns=warmup_ns + PICTURED_NS)


def _run(cell: _Cell) -> list[KernelOutcome]:
    return [simulate(scenario) for scenario in cell.scenarios]


def _figures(outcomes: Sequence[KernelOutcome], client: int) -> _Figures:
    latencies = sorted(ns for outcome in outcomes for ns in outcome.clients[client].latencies_ns)
    return _Figures(
        per_s=sum(outcome.clients[client].per_s for outcome in outcomes) / len(outcomes),
        p50_ns=_quantile(latencies, 0.50),
        p99_ns=_quantile(latencies, 0.99),
    )


def _quantile(ascending: Sequence[int], share: float) -> int:
    return ascending[max(1, math.ceil(share * len(ascending))) - 1] if ascending else 0


def _total(outcomes: Sequence[KernelOutcome], alone: Sequence[_Figures]) -> float:
    return sum(_ratio(_figures(outcomes, i).per_s, alone[i].per_s) for i in range(2))


def _ratio(value: float, reference: float) -> float:
    return value / reference if reference > 0 else 0.0


def _row(cell: _Cell, outcomes: Sequence[KernelOutcome], alone: Sequence[_Figures], over_sequential: float) -> PairRow:
    high, best_effort = _figures(outcomes, 0), _figures(outcomes, 1)
    clients = [client for outcome in outcomes for client in outcome.clients]
    time_ns = sum(outcome.end_ns for outcome in outcomes)
    launches = sum(client.launches for client in clients)
    rates = _ratio(high.per_s, alone[0].per_s), _ratio(best_effort.per_s, alone[1].per_s)
    scenario = cell.scenarios[0]
    return PairRow(
        pair=cell.pair,
        high=scenario.clients[0].program,
        best_effort=scenario.clients[1].program,
        policy=cell.policy or "",
        mode=cell.mode if cell.policy in HAVE_MODES else "",
        high_rate=rates[0],
        best_effort_rate=rates[1],
        total=sum(rates),
        over_sequential=over_sequential,
        high_p50=_ratio(high.p50_ns, alone[0].p50_ns),
        high_p99=_ratio(high.p99_ns, alone[0].p99_ns),
        shared=sum(outcome.shared_ns for outcome in outcomes) / time_ns,
        sm_peak=max(outcome.sm_peak for outcome in outcomes),
        bw_peak=max(outcome.bw_peak for outcome in outcomes),
        excess_share=sum(outcome.excess_ns for outcome in outcomes) / time_ns,
        excess_most=max(outcome.excess_most for outcome in outcomes),
        forced=sum(client.forced for client in clients),
        longest_wait_ms=max(client.longest_wait_ns for client in clients) / 1e6,
        events_per_launch=_ratio(sum(outcome.events + outcome.fences for outcome in outcomes), launches),
        stuck=any(outcome.stuck for outcome in outcomes),
    )
