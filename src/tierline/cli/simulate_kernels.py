"""`tierline simulate kernels`: pairs of programs on a simulated device under each kernel policy."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli import region_tables, render, simulated

if TYPE_CHECKING:
    from tierline.backends.kernels.pairs import Comparison, PairRow
    from tierline.policies.kernels import KernelMode

COLUMNS = (
    "POLICY",
    "HIGH",
    "BEST-EFFORT",
    "TOTAL",
    "× SEQUENTIAL",
    "HIGH p99",
    "SM PEAK",
    "BW PEAK",
    "OVER LIMIT",
    "FORCED",
)
LEAST = ("FORCED", "BW PEAK", "SM PEAK", "OVER LIMIT")  # left out first where a terminal is narrow
LEGEND = (
    "HIGH, BEST-EFFORT: throughput relative to alone, TOTAL their sum; HIGH p99: latency relative to alone.\n"
    "PEAK, OVER LIMIT: the device's true sums while both ran, and the share of time over a limit."
)


def kernels(
    pair: Annotated[str, typer.Option(metavar="NAME[,NAME…]|all", help="Pairs; `--list` names them.")] = "all",
    policy: Annotated[
        str, typer.Option(metavar="NAME[,NAME…]|all", help="`plain` is without Tierline: streams of equal priority.")
    ] = "all",
    mode: Annotated[str, typer.Option(metavar="strict|latency|both", help="Of the policy `interference`.")] = "latency",
    device: Annotated[str, typer.Option(metavar="h200|a100|v100", help="The simulated device.")] = "h200",
    profiles: Annotated[
        str, typer.Option(metavar="exact|noisy:SHARE|tagged|none", help="What the gate is told of the kernels.")
    ] = "exact",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each, with seeds SEED, SEED+1, …")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 = one per core.")] = 0,
    json_file: Annotated[str, typer.Option("--json", metavar="FILE|-", help="Write the results as JSON.")] = "",
    picture: Annotated[
        str, typer.Option(metavar="FILE", help="Draw both sums over time, one pair and policy (extra 'plot').")
    ] = "",
    show_pairs: Annotated[bool, typer.Option("--list", help="List the pairs and leave.")] = False,
) -> None:
    """Run pairs of programs on a simulated device, each policy against alone and against one after another.

    The gate is the one that `tierline run` puts under real programs; device and programs are simulated.

    Example: `tierline simulate kernels --pair gemm+norm --policy interference,orion --mode both`
    """
    from tierline.backends.kernels import pairs
    from tierline.core.errors import InvalidInput

    if show_pairs:
        _list_pairs()
        return
    simulated.check_folders(json_file, picture)
    comparison = pairs.Comparison(
        pairs=pairs.pair_names() if pair == "all" else tuple(dict.fromkeys(pair.split(","))),
        policies=pairs.policy_names() if policy == "all" else tuple(dict.fromkeys(policy.split(","))),
        modes=_modes(mode),
        device=device,
        profiles=profiles,
        seeds=seeds,
        seed=seed,
    )
    if picture and (len(comparison.pairs) != 1 or len(comparison.policies) != 1 or len(comparison.modes) != 1):
        raise InvalidInput("--picture shows one run: name one --pair, one --policy and one --mode with it.")
    rows = run(comparison, workers or os.cpu_count() or 1)
    if picture:
        _draw(comparison, Path(picture))
    found = as_json(comparison, rows)
    if simulated.put_json(found, json_file):
        return
    show(comparison, rows)


def _modes(text: str) -> tuple[KernelMode, ...]:
    from tierline.core.errors import UnknownName
    from tierline.policies.kernels import MODES

    if text == "both":
        return MODES
    for mode in MODES:
        if mode == text:
            return (mode,)
    raise UnknownName("mode", text, (*MODES, "both"))


def _list_pairs() -> None:
    from tierline.backends.kernels.pairs import pair_descriptions

    render.print_table(("PAIR", "HIGH", "BEST-EFFORT", "WHAT"), pair_descriptions(), wrap=True)


def run(comparison: Comparison, workers: int) -> list[PairRow]:
    """All of it, with a progress bar on stderr when somebody watches."""
    from tierline.backends.kernels import pairs

    with render.progress("simulating") as progress:
        task = progress.add_task("", total=pairs.count_runs(comparison))
        return pairs.compare(comparison, workers, lambda what: progress.update(task, advance=1, description=what))


def as_json(comparison: Comparison, rows: Sequence[PairRow]) -> dict[str, Any]:
    """What was run, on which truth, and every cell."""
    from tierline.backends.kernels.pairs import truth_hash

    return {
        "simulated_device": comparison.device,
        "truth_sha256": truth_hash(),
        "profiles": comparison.profiles,
        "seeds": list(range(comparison.seed, comparison.seed + comparison.seeds)),
        "rows": [asdict(row) for row in rows],
    }


def show(comparison: Comparison, rows: Sequence[PairRow]) -> None:
    """One table a pair."""
    for pair in dict.fromkeys(row.pair for row in rows):
        of_pair = [row for row in rows if row.pair == pair]
        print(
            f"{pair}: {of_pair[0].high} (high) beside {of_pair[0].best_effort}; "
            f"simulated device {comparison.device}, profiles {comparison.profiles}"
        )
        region_tables.print_fitting(COLUMNS, [_cells(row) for row in of_pair], COLUMNS[1:], LEAST)
        print()
    print(LEGEND)


def _cells(row: PairRow) -> list[str]:
    return [
        f"{row.policy} ({row.mode})" if row.mode else row.policy,
        f"{row.high_rate:.2f}",
        f"{row.best_effort_rate:.2f}",
        f"{row.total:.2f}",
        f"{row.over_sequential:.2f}",
        f"{row.high_p99:.2f}",
        f"{row.sm_peak:.2f}",
        f"{row.bw_peak:.2f}",
        f"{row.excess_share:.1%}",
        str(row.forced) + (" stuck" if row.stuck else ""),
    ]


def _draw(comparison: Comparison, path: Path) -> None:
    """Both true sums after the warm-up, where kernels of two clients ran in another colour than where of one."""
    from tierline.backends.kernels.pairs import picture_scenario
    from tierline.backends.kernels.sim import simulate

    with simulated.chart("--picture", path, 11.0, 5.0) as figure:
        scenario = picture_scenario(comparison)
        begin_ns = scenario.warmup_ns
        sums = [at for at in simulate(scenario).sums if at.at_ns >= begin_ns]
        upper, lower = figure.subplots(2, 1, sharex=True)
        at_ms = [(at.at_ns - begin_ns) / 1e6 for at in sums]
        for axes, label, values in (
            (upper, "SM", [at.sm for at in sums]),
            (lower, "bandwidth", [at.bw for at in sums]),
        ):
            axes.fill_between(at_ms, values, step="post", color="tab:gray", alpha=0.35, label="one client")
            shared = [at.clients > 1 for at in sums]
            axes.fill_between(at_ms, values, where=shared, step="post", color="tab:orange", alpha=0.9, label="both")
            axes.axhline(1.0, color="black", linewidth=1.0, linestyle="--", label="the device")
            axes.set_ylabel(f"sum of {label} use")
            axes.set_ylim(bottom=0.0)
        upper.legend(loc="upper right", ncols=3, fontsize=8)
        lower.set_xlabel("milliseconds")
        mode = f", {scenario.mode}" if scenario.policy == "interference" else ""
        figure.suptitle(
            f"{comparison.pairs[0]} under {comparison.policies[0]}{mode}: simulated device {scenario.device}"
        )
