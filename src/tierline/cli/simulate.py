"""`tierline simulate jobs SOURCE`: the policies, unchanged, over a simulated cluster; `simulate` itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli import render, simulate_kernels, simulate_serving, simulated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tierline.experiments import Experiment, Run

SHOWN = (
    ("utility", "utility", 2),
    ("of_bound", "of bound", 3),
    ("utility_auc", "mean utility", 2),
    ("best_regret", "regret", 3),
    ("mean_jct_s", "mean JCT s", 0),
    ("makespan_s", "makespan s", 0),
    ("wasted_gpu_s", "wasted GPU-s", 0),
    ("idle_gpu_s", "idle GPU-s", 0),
    ("preemptions", "preempt.", 0),
)


def register(app: typer.Typer) -> None:
    simulations = typer.Typer(help="Run policies over a simulated cluster, deployment or device.", no_args_is_help=True)
    simulations.command("jobs")(jobs)
    simulations.command("serving")(simulate_serving.serving)
    simulations.command("kernels")(simulate_kernels.kernels)
    simulations.callback()(_simulate)
    app.add_typer(simulations, name="simulate", rich_help_panel="Simulation")


def _simulate() -> None:
    """Run policies over a simulated cluster, deployment or device: the live schedulers, the gate's core, virtual time."""


def jobs(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="taskset:DIR, exploratory, philly:FILE, pollux:DIR or alibaba:FILE, with ?option=value&… behind it.",
        ),
    ],
    count: Annotated[int, typer.Option("--jobs", min=0, help="Jobs to take; 0 = all (synthetic ones: 200).")] = 0,
    gpus: Annotated[int, typer.Option(min=1, help="Devices of the cluster.")] = 16,
    gpus_per_node: Annotated[int, typer.Option(min=1, help="Devices of one node.")] = 8,
    gpu_type: Annotated[str, typer.Option(help="Their type, as in v100.")] = "gpu",
    nodes: Annotated[str, typer.Option(help="Instead of --gpus: 2x8:v100,1x4:p100.")] = "",
    loads: Annotated[
        str, typer.Option("--load", metavar="L[,L…]", help="1.0 = work equal to capacity; 0 = a trace's own times.")
    ] = "1.0",
    policy: Annotated[
        str, typer.Option(metavar="NAME[,NAME…]|all", help="See `tierline policies`; options as in explsched?keep=0.5.")
    ] = "all",
    seeds: Annotated[int, typer.Option(min=1, help="Workloads drawn, with seeds SEED, SEED+1, …")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    quantum: Annotated[float, typer.Option(min=0.001, help="Seconds between preemptive rounds.")] = 60.0,
    restart: Annotated[float, typer.Option(min=0.0, help="Seconds that a resume costs.")] = 30.0,
    fair_by: Annotated[str, typer.Option(metavar="job|user|sweep", help="Whose jobs share one weight.")] = "job",
    stragglers: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of nodes at half speed.")] = 0.0,
    node_loss: Annotated[float, typer.Option(min=0.0, help="Expected losses a node and day.")] = 0.0,
    pairs: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Measured pairs: jobs get their types, --share its truth; ?start=p100&hidden=0&window=60&noise=0.05.",
        ),
    ] = "",
    share: Annotated[bool, typer.Option("--share", help="Two jobs may use one device; needs --pairs.")] = False,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 = one per core.")] = 0,
    json_file: Annotated[str, typer.Option("--json", metavar="FILE|-", help="Write the results as JSON.")] = "",
    events: Annotated[str, typer.Option(metavar="FILE", help="Write every event and action of a single run.")] = "",
    plot: Annotated[str, typer.Option(metavar="FILE", help="Write a chart (needs the extra 'plot').")] = "",
) -> None:
    """Simulate jobs under one policy or all of them, over the same arrivals, and judge what each schedule was worth.

    Example: `tierline simulate jobs exploratory --gpus 16 --load 4 --policy explsched,fifo,las --seeds 3`
    """
    from tierline import experiments
    from tierline.backends.jobs.sim import uniform_nodes
    from tierline.core.errors import InvalidInput
    from tierline.core.nouns import NS_PER_S

    if fair_by not in ("job", "user", "sweep"):
        raise InvalidInput(f"--fair-by is job, user or sweep, not '{fair_by}'.")
    experiment = experiments.Experiment(
        source=source,
        nodes=experiments.parse_nodes(nodes) if nodes else uniform_nodes(gpus, gpus_per_node, gpu_type),
        policies=experiments.parse_policies(policy),
        jobs=count,
        loads=simulated.numbers("--load", loads, "2,4,8"),
        seeds=seeds,
        seed=seed,
        quantum_ns=round(quantum * NS_PER_S),
        restart_ns=round(restart * NS_PER_S),
        fair_by=fair_by,
        stragglers=stragglers,
        node_loss_per_day=node_loss,
        pairs=pairs,
        share=share,
    )
    simulated.check_folders(json_file, plot)
    runs = _run(experiment, workers or os.cpu_count() or 1, Path(events) if events else None)
    found = experiments.as_json(experiment, runs)
    if plot:
        _plot(found, Path(plot))
    if simulated.put_json(found, json_file):
        return
    for entry in found["loads"].values():
        show(entry, found["paper_mean_gain"])


def _run(experiment: Experiment, workers: int, events: Path | None) -> Sequence[Run]:
    """With a progress bar on stderr when somebody watches."""
    from tierline import experiments

    total = len(experiment.policies) * experiment.seeds * len(experiment.loads)
    with render.progress("simulating") as progress:
        task = progress.add_task("", total=total)

        def advance(run: Run) -> None:
            progress.update(task, advance=1, description=f"{run.policy}, load {run.load:g}, seed {run.seed}")

        return experiments.run_all(experiment, workers, advance, events)


def show(entry: dict[str, Any], paper: float) -> None:
    """Print one load's results as a table, best utility first, and the four ratios below it."""
    from rich.table import Table

    count, first = len(entry["workloads"]), entry["workloads"][0]
    title = f"load {entry['load']:g}, mean of {count} workload{'s' if count > 1 else ''} ({first['hash'][:12]}…)"
    if count > 1:
        title += ", ± half of the 95 % interval"
    headings = ["policy", *(heading for _, heading, _ in SHOWN)]
    rows = []
    ranked = sorted(entry["policies"].items(), key=lambda item: -item[1]["mean"]["utility"])
    for name, found in ranked:
        cells = [f"{name} *" if found["sees_the_future"] else name]
        for figure, _, digits in SHOWN:
            mean, half = found["mean"][figure], found["half_width_95"][figure]
            text = "-" if mean is None else f"{mean:,.{digits}f}"
            if mean is not None and half and figure in ("utility", "of_bound", "best_regret"):
                text += f" ±{half:.{digits}f}"
            cells.append(text)
        rows.append(cells)
    if render.on_terminal():
        table = Table(title=title, box=None, pad_edge=False, header_style="bold", title_justify="left")
        for column, heading in enumerate(headings):
            table.add_column(heading, justify="right" if column else "left")
        for cells in rows:
            table.add_row(*cells)
        render.console().print(table)
    else:
        print(title)
        print(render.plain_table(headings, rows))
    if sharing := {name: found["sharing"]["mean"] for name, found in ranked if "sharing" in found}:
        _show_sharing(sharing)
    if any(found["sees_the_future"] for found in entry["policies"].values()):
        print("* sees the future")
    if ratios := entry["ratios"]:
        parts = ", ".join(f"{name} {gain:+.2%}" for name, gain in ratios.items() if name != "mean")
        print(
            f"explsched's utility over {parts}; mean {ratios['mean']:+.2%} (the paper, on its own workload: {paper:+.2%})"
        )
    print()


def _show_sharing(sharing: dict[str, dict[str, float]]) -> None:
    """What sharing did, a line a policy."""
    print("Two jobs may share a device. The bound is that of exclusive devices: of bound may exceed 1.")
    for name, mean in sharing.items():
        print(
            f"{name}: {mean['packs']:.0f} pairs made, {mean['bad']:.0f} of them bad (speeds add up to 1 or less; such a pair "
            f"lasted {mean['mean_bad_s']:.0f} s on average), {mean['unpacks']:.0f} guests asked to leave; "
            f"{mean['shared_gpu_s'] / 3600:.0f} GPU-h shared at {mean['mean_speeds'] or 0:.2f} jobs' speed a device"
        )


def _plot(found: dict[str, Any], path: Path) -> None:
    """Utility by policy, one group of bars a load, the bound as a line over each group."""

    loads = list(found["loads"].values())
    with simulated.chart("--plot", path, 2.5 + 4.0 * len(loads), 4.5) as figure:
        for number, entry in enumerate(loads):
            axes = figure.add_subplot(1, len(loads), number + 1)
            ranked = sorted(entry["policies"].items(), key=lambda item: item[1]["mean"]["utility"])
            names = [name for name, _ in ranked]
            axes.barh(
                names,
                [policy["mean"]["utility"] for _, policy in ranked],
                xerr=[policy["half_width_95"]["utility"] for _, policy in ranked],
                color=["tab:orange" if name.startswith("explsched") else "tab:gray" for name in names],
            )
            bounds = [w["bound"] for w in entry["workloads"] if w["bound"] is not None]
            if bounds:
                axes.axvline(sum(bounds) / len(bounds), color="black", linestyle="--", label="bound")
                axes.legend(loc="lower right")
            axes.set_title(f"load {entry['load']:g}")
            axes.set_xlabel("training utility at the horizon")
