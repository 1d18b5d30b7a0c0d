"""`tierline simulate serving WORKLOAD`: the serving tier's policies, unchanged, over simulated devices."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tierline.cli import render, simulated

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tierline.serving_experiments import ServingExperiment, ServingRun

MODEL, DEVICE = "Qwen2.5-VL-7B", "h100"
COLUMNS = (
    "POLICY",
    "GOODPUT/s",
    "SLO MET",
    "TEXT",
    "IMAGES",
    "TTFT p50",
    "TTFT p99",
    "TPOT p50",
    "TPOT p99",
    "TOKENS/s",
    "BUSY",
)
LEGEND = (
    "GOODPUT: requests a second that kept the SLO; SLO MET: their share of all, of those without and with images. "
    "The first tenth of the time is left out."
)
FIGURES = (
    ("all.goodput_per_s", "goodput, requests/s"),
    ("all.ttft.p99", "TTFT p99, s"),
    ("all.tpot.p99", "TPOT p99, s"),
)


def serving(
    workload: Annotated[
        str,
        typer.Argument(
            metavar="WORKLOAD",
            help="servegen:DIR, azure:FILE, azure-mm:FILE, burstgpt:FILE, mooncake:FILE, synthetic, or several with + "
            "between them; ?option=value&… behind it.",
        ),
    ],
    policy: Annotated[
        str,
        typer.Option(metavar="NAME[,NAME…]", help="adaptive, emp, coupled, coupled-2024, static:2E2P4D, … (presets)."),
    ] = "adaptive,coupled",
    instances: Annotated[int, typer.Option(min=1, help="Devices, one instance each.")] = 8,
    min_instances: Annotated[int, typer.Option(metavar="N", min=0, help="With --max-instances.")] = 1,
    max_instances: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, help="Instances start, sleep, wake and stop between the two. [default: none does]"
        ),
    ] = 0,
    model: Annotated[
        str,
        typer.Option(metavar="NAME", help=f"As in the profiles of stage times. [default: {MODEL}, or the profile's]"),
    ] = "",
    device: Annotated[
        str,
        typer.Option(
            metavar="h100|h200|l40s|a100", help=f"What instances run on. [default: {DEVICE}, or the profile's]"
        ),
    ] = "",
    profile: Annotated[
        str,
        typer.Option(
            metavar="FILE.toml", help="A calibrated profile; refused if it is of another --model or --device."
        ),
    ] = "",
    rate: Annotated[
        str, typer.Option(metavar="R[,R…]", help="Requests/s, all devices together; 0 = as the workload says.")
    ] = "0",
    seconds: Annotated[float, typer.Option(metavar="S", min=0.0, help="Of the workload; 0 = as it says.")] = 0.0,
    requests: Annotated[int, typer.Option(metavar="N", min=0, help="At most; 0 = as the workload says.")] = 0,
    slo: Annotated[
        str, typer.Option(metavar="SLO", help="For the policies and for goodput, as in ttft=500ms,tpot=50ms.")
    ] = "ttft=2s,tpot=50ms",
    seeds: Annotated[int, typer.Option(min=1, help="Workloads drawn, with seeds SEED, SEED+1, …")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="The first seed.")] = 0,
    token_budget: Annotated[int, typer.Option(min=0, help="Tokens an iteration; 0 = the policy's.")] = 0,
    cpu_workers: Annotated[int, typer.Option(min=1, help="Of the host, for preparing images.")] = 16,
    latency: Annotated[float, typer.Option(metavar="MS", min=0.0, help="A message takes so long.")] = 0.2,
    kill: Annotated[
        list[str] | None, typer.Option(metavar="NAME@S", help="Instance NAME (i0, i1, …) dies after S seconds.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes; 0 = one per core.")] = 0,
    json_file: Annotated[str, typer.Option("--json", metavar="FILE|-", help="Write the results as JSON.")] = "",
    events: Annotated[str, typer.Option(metavar="FILE", help="Write every event and action of a single run.")] = "",
    plot: Annotated[str, typer.Option(metavar="FILE", help="Write a chart (needs the extra 'plot').")] = "",
) -> None:
    """Simulate a serving deployment under one policy or several, over the same requests, and report what users would feel.

    Example: `tierline simulate serving "synthetic?mm_share=0.5" --rate 40,80 --seconds 120 --policy adaptive,coupled,emp`
    """
    from tierline import serving_experiments as experiments
    from tierline.core.slo import Slo

    if profile:
        experiments.times_of(profile).profile.check(model, device)
    simulated.check_folders(json_file, plot)
    experiment = experiments.ServingExperiment(
        source=workload,
        policies=experiments.parse_presets(policy),
        setup=experiments.ServingSetup(
            times=profile or f"{device or DEVICE}:{model or MODEL}",
            instances=instances,
            min_instances=min_instances,
            max_instances=max_instances,
            slo=Slo.parse(slo),
            token_budget=token_budget,
            cpu_workers=cpu_workers,
            latency_ns=round(latency * 1e6),
            kills=tuple(experiments.parse_kill(each) for each in kill or ()),
        ),
        rates=simulated.numbers("--rate", rate, "20,40,80"),
        seconds=seconds,
        requests=requests,
        seeds=seeds,
        seed=seed,
    )
    runs = _run(experiment, workers or os.cpu_count() or 1, Path(events) if events else None)
    found = experiments.as_json(experiment, runs)
    if plot:
        _plot(found, Path(plot))
    if simulated.put_json(found, json_file):
        return
    for rate_asked, entry in found["rates"].items():
        _show(rate_asked, entry)
    print(LEGEND)


def _run(experiment: ServingExperiment, workers: int, events: Path | None) -> Sequence[ServingRun]:
    """With a progress bar on stderr when somebody watches."""
    from tierline import serving_experiments as experiments

    total = len(experiment.policies) * experiment.seeds * len(experiment.rates)
    with render.progress("simulating") as progress:
        task = progress.add_task("", total=total)

        def advance(run: ServingRun) -> None:
            progress.update(task, advance=1, description=f"{run.policy}, {run.rate:g} requests/s, seed {run.seed}")

        return experiments.run_all(experiment, workers, advance, events)


def _show(rate: str, entry: dict[str, Any]) -> None:
    """One rate's results as a table, most goodput first."""
    hashes = list(entry["workloads"].values())
    title = f"{rate} requests/s" if float(rate) else "the workload's own rate"
    title += f", mean of {len(hashes)} workload{'s' if len(hashes) > 1 else ''} ({hashes[0][:12]}…)"
    if len(hashes) > 1:
        title += ", ± half of the 95 % interval"
    rows = []
    ranked = sorted(entry["policies"].items(), key=lambda item: -item[1]["mean"].get("all.goodput_per_s", 0.0))
    for name, found in ranked:
        mean, half = found["mean"], found["half_width_95"].get("all.goodput_per_s", 0.0)
        goodput = f"{mean.get('all.goodput_per_s', 0.0):.2f}" + (f" ±{half:.2f}" if half else "")
        busy = sum(seed["counts"]["busy_share"] for seed in found["seeds"]) / len(found["seeds"])
        rows.append([
            name,
            goodput,
            *(_percent(mean.get(f"{kind}.attainment")) for kind in ("all", "text", "images")),
            *(_ms(mean.get(f"all.{figure}")) for figure in ("ttft.p50", "ttft.p99", "tpot.p50", "tpot.p99")),
            f"{mean.get('all.output_tokens_per_s', 0.0):,.0f}",
            _percent(busy),
        ])  # fmt: skip
    print(title)
    render.print_table(COLUMNS, rows, right=COLUMNS[1:])
    for name, found in ranked:
        for seed in found["seeds"]:
            if told := _comings_and_goings(seed["counts"]):
                print(f"{name}, seed {seed['seed']}: {told}")
            if seed["all"]["errors"]:
                told = ", ".join(f"{count} {kind}" for kind, count in seed["all"]["errors"])
                print(f"{name}, seed {seed['seed']}: {told}")
    print()


def _comings_and_goings(counts: dict[str, float]) -> str:
    """What became of instances; "" where nobody came or went."""
    names = {"instances_started": "started", "instance_sleeps": "slept", "instance_wakes": "woken"}
    found = [
        f"{counts[key]:.0f} {word}"
        for key, word in {**names, "instances_stopped": "stopped"}.items()
        if counts.get(key)
    ]
    return ", ".join([*found, f"{counts['device_s']:,.0f} device-seconds"]) if found else ""


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.1f} ms"


def _plot(found: dict[str, Any], path: Path) -> None:
    """Goodput, TTFT and TPOT over the rate, a line a policy; bars where there is one rate."""

    rates = list(found["rates"])
    policies = list(next(iter(found["rates"].values()))["policies"])
    with simulated.chart("--plot", path, 13.0, 4.2) as figure:
        for number, (key, label) in enumerate(FIGURES):
            axes = figure.add_subplot(1, len(FIGURES), number + 1)
            for place, name in enumerate(policies):
                cells = [found["rates"][rate]["policies"][name] for rate in rates]
                values = [cell["mean"].get(key, float("nan")) for cell in cells]
                halves = [cell["half_width_95"].get(key, 0.0) for cell in cells]
                if len(rates) > 1:
                    axes.errorbar([float(rate) for rate in rates], values, yerr=halves, marker="o", label=name)
                else:
                    axes.bar([place], values, yerr=halves, label=name)
            axes.set_ylabel(label)
            if len(rates) > 1:
                axes.set_xlabel("requests/s")
            else:
                axes.set_xticks([])
            axes.set_ylim(bottom=0.0)
        axes.legend()
