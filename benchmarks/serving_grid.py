"""Serving policies judged on a grid of workloads, simulated: goodput at fixed parts of the coupled baseline's own capacity.

Setting. 8 H100s, Qwen2.5-VL-7B; ServeGen's image service mixed with Azure's conversations (`workloads/serving/judged.py`).

- SLO: the mean TTFT of text and of image requests, and the mean TPOT, of `coupled` at 4 requests/s (mm_share 0.5, seed 2000),
  times 10, 5, 3 and 2. Milliseconds, the same for all systems and cells.
- Capacity: the highest rate at which 90 % of the requests that could meet the SLO do so, by bisection to 6 %; that of the
  best `coupled` variant of the cell; seed 2000, and for the ratio to that one also 2001 to 2005. A request could meet it if
  the predicted times of its own prompt and images, on idle devices, are within the SLO: at 2 and 3 x the mean some long
  prompts cannot, whatever a policy does. Goodput and attainment count all requests.
- Judged at 50, 80, 95 and 110 % of that, seeds 10, 11, ... in pairs; the ratio to the best `coupled` variant of the same cell
  and SLO, of means, has a 95 % interval (t, over the seeds' differences). Tuned on: 0, 1, 100 to 104, 1000.
- The best static split of a cell is the one with the most goodput at 95 %; its rate within the SLO is found as coupled's is.
- Everything is in FILE as soon as it is run; the same command goes on from there. `--minutes` ends it in time.

    python benchmarks/serving_grid.py DATA/serving --quick
    python benchmarks/serving_grid.py DATA/serving --wide
    python benchmarks/serving_grid.py DATA/serving
    python benchmarks/serving_grid.py DATA/serving --summary
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from tierline import __version__
from tierline import serving_experiments as experiments
from tierline.core.served_trace import ServedTrace
from tierline.core.slo import Slo
from tierline.core.stage_times import BatchShape
from tierline.presets import ServingPreset, preset_of
from tierline.runtime import serving_report
from tierline.runtime.simulated_runs import spread
from tierline.workloads.serving import judged
from tierline.workloads.serving.judged import START_S, Load
from tierline.workloads.serving.judged import cells as all_cells

TIMES, INSTANCES = "h100:Qwen2.5-VL-7B", 8
LIGHT_RATE, CAPACITY_SEEDS, FIRST_SEED = 4.0, tuple(range(2000, 2006)), 10
REACHED = 0.9  # of the requests that could meet the SLO
PARTS = (0.5, 0.8, 0.95, 1.1)
COUPLED = ("coupled", "coupled-512", "coupled+inline", "coupled-512+inline")
OTHERS = ("emp", "emp-release", "coupled-2024")
LEFT_OUT = tuple(
    f"{name}-{part}"
    for name in ("adaptive", "emp")
    for part in ("groups", "elasticity", "cache", "overlap", "deadlines")
)
SHOWN_STATIC = 3  # of a cell and rate, the best
PRECISION = 0.06


@dataclass(frozen=True)
class Sizes:
    """How much is run. `side`: what runs beside adaptive and coupled, at the rates `side_parts`, with `side_seeds` seeds and
    at the SLOs `side_factors`."""

    cells: tuple[tuple[float, float, Load], ...]
    factors: tuple[float, ...]
    seconds: float
    seeds: int
    coupled: tuple[str, ...]
    side: tuple[str, ...]
    side_parts: tuple[float, ...]
    side_seeds: int
    side_factors: tuple[float, ...]


def quick() -> Sizes:
    cells: tuple[tuple[float, float, Load], ...] = (
        (0.5, 0.0, "stationary"),
        (0.5, 0.0, "bursts"),
        (0.8, 0.0, "drift"),
        (0.2, 0.0, "stationary"),
        (0.8, 0.0, "stationary"),
    )
    return Sizes(cells, (3.0, 2.0, 5.0, 10.0), 30.0, 3, COUPLED, side(), (0.95,), 1, (3.0, 2.0))


def wide() -> Sizes:
    """The cells that `quick` leaves out, without static splits and wider SLOs."""
    cells = tuple(each for each in all_cells() if each not in quick().cells)
    return Sizes(cells, (3.0, 2.0), 30.0, 3, COUPLED, (*OTHERS, *LEFT_OUT), (0.95,), 1, (3.0, 2.0))


def full() -> Sizes:
    factors = (10.0, 5.0, 3.0, 2.0)
    return Sizes(tuple(all_cells()), factors, 120.0, 5, COUPLED, side(), PARTS, 5, factors)


def side() -> tuple[str, ...]:
    return (*OTHERS, *LEFT_OUT, *static_splits(INSTANCES))


def static_splits(instances: int) -> tuple[str, ...]:
    """Every split into E, P and D, and into two kinds of instances that do all stages between them and share prefill (EP and
    D, EP and EPD, E and PD, EP and PD); and into a text group P and D and a multimodal one E, P and D."""
    found = []
    for encode in range(1, instances - 1):
        for prefill in range(1, instances - encode):
            found.append(f"static:{encode}E{prefill}P{instances - encode - prefill}D")
    found += [f"static:{prompts}EP{instances - prompts}D" for prompts in range(1, instances)]
    found += [f"static:{prompts}EP{instances - prompts}EPD" for prompts in range(1, instances)]
    found += [f"static:{encode}E{instances - encode}PD" for encode in range(1, instances)]
    found += [f"static:{prompts}EP{instances - prompts}PD" for prompts in range(1, instances)]
    for text in range(2, instances - 2):
        for p in range(1, text):
            for e in range(1, instances - text - 1):
                for q in range(1, instances - text - e):
                    found.append(f"static:{p}P{text - p}D+{e}E{q}P{instances - text - e - q}D")
    return tuple(found)


def system(name: str) -> ServingPreset:
    """A preset, or one with `+inline`: images are encoded between iterations."""
    base, plus, _ = name.partition("+inline")
    preset = preset_of(base)
    return replace(preset, name=name, encoder="inline") if plus else preset


@dataclass(frozen=True)
class Judge:
    """Light-load means of `coupled`, in seconds, and their multiple."""

    text_s: float
    image_s: float
    tpot_s: float

    def slo(self, factor: float) -> Slo:
        ttft, image, tpot = (round(factor * each * 1e9) for each in (self.text_s, self.image_s, self.tpot_s))
        return Slo(ttft, tpot, image)


def possible(trace: ServedTrace, slo: Slo, from_ns: int) -> float:
    """The share of the requests that arrive from then on whose first token can be in time: preparing and encoding the images
    beside each other, then the whole prompt, all at once."""
    times = experiments.times_of(TIMES)
    able = seen = 0
    for request in trace.requests:
        if request.arrived_ns < from_ns:
            continue
        patches = [image.encoder_patches(times.patches_per_token) for image in request.images]
        made_s = max((times.prepare_s(each) + times.encode_s((each,)) for each in patches), default=0.0)
        prompt_s = times.iteration_s(BatchShape(((request.prompt_tokens, 0),)))
        seen += 1
        able += made_s + prompt_s <= slo.ttft_of(request.prompt_tokens, len(patches)) / 1e9
    return able / seen


class Grid:
    def __init__(self, data: Path, file: Path, sizes: Sizes, until_s: float, start_s: int) -> None:
        self.data, self.file, self.sizes, self.until_s, self.start_s = data, file, sizes, until_s, start_s
        self.found: dict[str, Any] = (
            json.loads(file.read_text()) if file.exists() else {"tierline": __version__, "runs": {}}
        )
        self.judge: Judge | None = None

    @lru_cache(maxsize=6)  # noqa: B019
    def trace(
        self, rate: float, seconds: float, cell: tuple[float, float, Load], seed: int, start_s: int
    ) -> ServedTrace:
        mm_share, repeat, load = cell
        return judged(self.data, rate, seconds, mm_share=mm_share, repeat=repeat, load=load, seed=seed, start_s=start_s)

    def run(
        self, name: str, rate: float, seconds: float, cell: tuple[float, float, Load], seed: int, factor: float
    ) -> Any:
        """The row of a run, from the file if it is there. `factor` 0: the one that the SLO follows from, which is at the time
        of day that is tuned on."""
        key = f"{name}|{cell[0]:g},{cell[1]:g},{cell[2]}|{rate:g}|{seconds:g}|{seed}|{factor:g}"
        if key not in self.found["runs"]:
            if time.monotonic() > self.until_s:
                raise TimeoutError
            assert self.judge is not None or factor == 0
            slo = self.judge.slo(factor) if self.judge and factor else Slo(1_000_000_000, 40_000_000)
            trace = self.trace(rate, seconds, cell, seed, self.start_s if factor else START_S)
            self.found["runs"][key] = self._simulate(name, trace, slo)
            scratch = self.file.with_suffix(".part")
            scratch.write_text(json.dumps(self.found, indent=0) + "\n")
            scratch.replace(self.file)
        return self.found["runs"][key]

    def _simulate(self, name: str, trace: ServedTrace, slo: Slo) -> dict[str, Any]:
        setup = experiments.ServingSetup(TIMES, INSTANCES, slo)
        backend, scheduler = experiments.simulate(trace, system(name), setup)
        outcomes = backend.outcomes()
        report = experiments.judge(outcomes, setup)
        counts = experiments.counts_of(backend, scheduler, outcomes)
        row: dict[str, Any] = {"workload": trace.workload_hash, "requests": len(outcomes)}
        row["goodput_per_device"] = report.all.goodput_per_device
        row["attainment"] = report.all.attainment
        row["possible"] = possible(trace, slo, report.from_ns)
        for kind in ("all", "text", "images"):
            judged: serving_report.ModalityReport = getattr(report, kind)
            if kind != "all":
                row[f"{kind}_attainment"] = judged.attainment
            for figure in ("ttft", "tpot"):
                latencies: serving_report.Latencies = getattr(judged, figure)
                for part in ("mean", "p50", "p90", "p99"):
                    row[f"{kind}_{figure}_{part}"] = round(getattr(latencies, part), 6)
        row["moves"], row["role_changes"] = counts.get("moves", 0), counts.get("role_changes", 0)
        return row

    # --- the grid

    def all(self) -> None:
        light = self.run("coupled", LIGHT_RATE, 120.0, (0.5, 0.0, "stationary"), CAPACITY_SEEDS[0], 0.0)
        self.judge = Judge(light["text_ttft_mean"], light["images_ttft_mean"], light["all_tpot_mean"])
        self.found["light"] = vars(self.judge)
        for cell in self.sizes.cells:
            for factor in self.sizes.factors:
                self.cell(cell, factor)

    def cell(self, cell: tuple[float, float, Load], factor: float) -> None:
        sizes = self.sizes
        seconds = 60.0 if cell[2] == "bursts" and sizes.seconds < 60 else sizes.seconds
        capacities = {name: self.capacity(name, cell, factor, seconds) for name in (*sizes.coupled, "adaptive")}
        reference = max(sizes.coupled, key=lambda name: capacities[name])
        best = capacities[reference]
        ratios = [
            self.capacity("adaptive", cell, factor, seconds, seed)
            / self.capacity(reference, cell, factor, seconds, seed)
            for seed in CAPACITY_SEEDS
        ]
        entry = {"capacity": capacities, "seconds": seconds, "ratios": ratios}
        label = f"{cell[0]:g},{cell[1]:g},{cell[2]}|{factor:g}"
        self.found.setdefault("cells", {})[label] = entry
        rates = {part: float(f"{part * best:.3g}") for part in PARTS}
        for part in sorted(PARTS, reverse=True):
            for seed in range(FIRST_SEED, FIRST_SEED + sizes.seeds):
                for name in (reference, "adaptive"):
                    self.run(name, rates[part], seconds, cell, seed, factor)
        if factor in sizes.side_factors:
            for part in sizes.side_parts:
                for seed in range(FIRST_SEED, FIRST_SEED + sizes.side_seeds):
                    for name in sizes.side:
                        self.run(name, rates[part], seconds, cell, seed, factor)
            if any(name.startswith("static:") for name in sizes.side):
                entry |= self._best_static(cell, factor, seconds, rates)
        print(label, {name: round(rate, 1) for name, rate in capacities.items()}, flush=True)

    def _best_static(
        self, cell: tuple[float, float, Load], factor: float, seconds: float, rates: dict[float, float]
    ) -> dict[str, Any]:
        """The best static split by its goodput at 95 %, and adaptive's rate within the SLO over its, by seed."""

        def goodput(name: str) -> float:
            seeds = range(FIRST_SEED, FIRST_SEED + self.sizes.side_seeds)
            rows = {seed: self.run(name, rates[0.95], seconds, cell, seed, factor) for seed in seeds}
            return _mean(rows, "goodput_per_device")

        best = max(static_splits(INSTANCES), key=goodput)
        for part in PARTS:
            for seed in range(FIRST_SEED, FIRST_SEED + self.sizes.seeds):
                self.run(best, rates[part], seconds, cell, seed, factor)
        ratios = [
            self.capacity("adaptive", cell, factor, seconds, seed) / self.capacity(best, cell, factor, seconds, seed)
            for seed in CAPACITY_SEEDS
        ]
        return {"static": best, "static_ratios": ratios}

    def capacity(
        self,
        name: str,
        cell: tuple[float, float, Load],
        factor: float,
        seconds: float,
        seed: int = CAPACITY_SEEDS[0],
    ) -> float:
        low, high = 30.0, 200.0
        while high / low > 1 + PRECISION:
            rate = float(f"{math.sqrt(low * high):.3g}")
            row = self.run(name, rate, seconds, cell, seed, factor)
            if row["attainment"] >= REACHED * row["possible"]:
                low = rate
            else:
                high = rate
        return low


# --- the summary


def summary(found: dict[str, Any]) -> str:
    lines: list[str] = []
    light = found["light"]
    lines.append(
        f"SLO at 1 x: TTFT {light['text_s'] * 1e3:.1f} ms (text), {light['image_s'] * 1e3:.1f} ms (images), TPOT "
        f"{light['tpot_s'] * 1e3:.2f} ms.\n"
    )
    lines += [
        "| cell (images, repeats, load) | SLO | coupled, requests/s | adaptive | ratio | on all seeds | best static split "
        "| over it, all seeds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for label, entry in found.get("cells", {}).items():
        cell, factor = label.split("|")
        capacities = entry["capacity"]
        best = max((name for name in capacities if name != "adaptive"), key=lambda each: capacities[each])
        ratio = capacities["adaptive"] / capacities[best]
        lines.append(
            f"| {cell} | {factor} x | {capacities[best]:.0f} ({best}) | {capacities['adaptive']:.0f} | {ratio:.2f} "
            f"| {_ratio(entry['ratios'])} | {entry.get('static', '-')} | {_ratio(entry.get('static_ratios', ()))} |"
        )
    for label, entry in found.get("cells", {}).items():
        lines += ["", *_cell_table(found["runs"], label, entry)]
    return "\n".join(lines) + "\n"


def _cell_table(runs: dict[str, Any], label: str, entry: dict[str, Any]) -> list[str]:
    cell, factor = label.split("|")
    best = max(rate for name, rate in entry["capacity"].items() if name != "adaptive")
    lines = [
        f"**{cell}, SLO {factor} x**",
        "",
        "| rate | system | goodput/device | / best coupled | attainment | text | images | TTFT mean, p99, ms "
        "| TPOT mean, p99, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for part in PARTS:
        rate = float(f"{part * best:.3g}")
        by_name: dict[str, dict[int, Any]] = {}
        for key, row in runs.items():
            name, where, at, seconds, seed, times = key.split("|")
            if (where, float(at), times, float(seconds)) == (cell, rate, factor, entry["seconds"]) and int(seed) < 100:
                by_name.setdefault(name, {})[int(seed)] = row
        coupled = {name: rows for name, rows in by_name.items() if name in COUPLED}
        if not coupled:
            continue
        goodput = {name: _mean(rows, "goodput_per_device") for name, rows in coupled.items()}
        reference = coupled[max(goodput, key=lambda each: goodput[each])]
        static = 0
        for name in sorted(by_name, key=lambda each: -_mean(by_name[each], "goodput_per_device")):
            rows = by_name[name]
            static += name.startswith("static:")
            if name.startswith("static:") and static > SHOWN_STATIC:
                continue
            shared = [seed for seed in rows if seed in reference]
            level = _mean({seed: reference[seed] for seed in shared}, "goodput_per_device") if shared else 0.0
            ratios = [
                1 + (rows[seed]["goodput_per_device"] - reference[seed]["goodput_per_device"]) / level
                for seed in shared
                if level
            ]
            lines.append(
                f"| {part:.0%} ({rate:g}/s) | {name} | {_mean(rows, 'goodput_per_device'):.2f} | {_ratio(ratios)} "
                f"| {_mean(rows, 'attainment'):.3f} | {_mean(rows, 'text_attainment'):.3f} "
                f"| {_mean(rows, 'images_attainment'):.3f} | {1e3 * _mean(rows, 'all_ttft_mean'):.0f}, "
                f"{1e3 * _mean(rows, 'all_ttft_p99'):.0f} | {1e3 * _mean(rows, 'all_tpot_mean'):.1f}, "
                f"{1e3 * _mean(rows, 'all_tpot_p99'):.1f} |"
            )
    return lines


def _mean(rows: dict[int, Any], figure: str) -> float:
    total: float = sum(row[figure] for row in rows.values())
    return total / len(rows)


def _ratio(ratios: Sequence[float]) -> str:
    if not ratios:
        return "-"
    if len(ratios) < 2:
        return f"{ratios[0]:.2f}"
    each = spread(ratios)
    return f"{each.mean:.2f} ± {each.half:.2f}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder with servegen_mm_image/ and azure/")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_true", help="five cells, shorter and fewer runs")
    size.add_argument(
        "--wide", action="store_true", help="as short, in the other 19 cells: no static splits, no wider SLO"
    )
    parser.add_argument("--cells", nargs="+", default=[], help="only these, as in 0.5,0,stationary")
    parser.add_argument("--factors", nargs="+", type=float, default=[], help="only these multiples of the SLO")
    parser.add_argument(
        "--start", type=int, default=START_S, metavar="S", help="another time of ServeGen's day (name another FILE): "
        "adaptive and coupled alone, judged by the SLO of the time that is tuned on",
    )  # fmt: skip
    parser.add_argument("--minutes", type=float, default=math.inf, help="end after so long; the next call goes on")
    parser.add_argument("--file", type=Path, default=Path("docs/results/serving_grid.json"))
    parser.add_argument("--summary", action="store_true", help="only print the Markdown of what is there")
    given = parser.parse_args()
    sizes = quick() if given.quick else wide() if given.wide else full()
    cells = tuple(
        each for each in sizes.cells if not given.cells or f"{each[0]:g},{each[1]:g},{each[2]}" in given.cells
    )
    sizes = replace(sizes, cells=cells, factors=tuple(given.factors) or sizes.factors)
    if given.start != START_S:
        sizes = replace(sizes, side=(), side_factors=())
    grid = Grid(given.data, given.file, sizes, time.monotonic() + 60 * given.minutes, given.start)
    if not given.summary:
        try:
            grid.all()
        except TimeoutError:
            print("time is up; the same command goes on from here", file=sys.stderr)
        given.file.write_text(json.dumps(grid.found, indent=0) + "\n")
    print(summary(grid.found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
