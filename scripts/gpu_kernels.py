"""The kernel tier on a real GPU, under PyTorch: what works, what it costs, and what sharing the device gains.

    scripts/gpu kernels                        all steps, about eight minutes on one H200
    scripts/gpu kernels --only works,overhead  some of them; the others' earlier results stay
    scripts/gpu kernels --plan                 say what would be run, and run nothing

The figures go to gpu_kernels.json and gpu_kernels.md in docs/results (or `--out`), and are written anew after every step, so
that a run which is cut short keeps what it has. Every step has a time limit; a step that lacks something says what and is
passed over. `--device cpu` runs the same programs in tiny sizes without a GPU: it shows that the script works and nothing
else, so it needs `--out`.

Figures: `p99` of a high-priority server against the same requests alone; `gain`, the work done together in units of the time
which it takes alone, over the time it took: 1.0 is one after another.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_kernels_report as report
from gpu_bench import ROOT, Bench, Missing, keep, limits_of
from gpu_children import ChildFailed
from gpu_share import MPS_ROWS, ROWS, share
from gpu_steps import calibrate, lanes, overhead, probe, tests, works


@dataclass(frozen=True, slots=True)
class Step:
    """`worth_s`: with less time than this left it is not begun."""

    name: str
    about: str
    worth_s: float
    run: Callable[[Bench], dict[str, Any]]


STEPS = (
    Step("probe", "what this machine has", 5, probe),
    Step("calibrate", "tierline calibrate device", 20, calibrate),
    Step("works", "the same losses with and without the interposer, eager, CUDA graphs, torch.compile", 40, works),
    Step("overhead", "nanoseconds and driver calls per tiny launch", 30, overhead),
    Step("tests", "pytest -m gpu of this tier", 30, tests),
    Step("share1", "a training beside an inference server, twelve ways", 30, lambda bench: share(bench, 1, ROWS)),
    Step("lanes", "GEMM beside norm in lanes of green contexts", 10, lanes),
    Step("share2", "two of each, twelve ways", 30, lambda bench: share(bench, 2, ROWS)),
    Step("mps", "the pair as separate processes under MPS", 30, lambda bench: share(bench, 1, MPS_ROWS)),
)


def run_step(bench: Bench, step: Step) -> None:
    if bench.left_s < step.worth_s:
        keep(bench, step.name, {"state": "skipped", "why": f"out of time; run it with --only {step.name}"})
        return
    print(f"{step.name}: {step.about} …", flush=True)
    began_s = time.monotonic()
    bench.found["steps"].pop(step.name, None)
    try:
        told = {"state": "ok"} | step.run(bench)
    except Missing as error:
        told = {"state": "skipped", "why": str(error)}
    except ChildFailed as error:
        told = {"state": "failed", "why": str(error)}
    except Exception as error:  # a step that breaks must not take the others' results with it
        told = {"state": "failed", "why": f"{type(error).__name__}: {error}"}
    told["date"] = bench.found["date"]
    told["took_s"] = round(time.monotonic() - began_s, 1)
    keep(bench, step.name, told)
    why = f": {told['why']}" if told.get("why") else ""
    print(f"  {told['state']} after {told['took_s']:.0f} s{why}", flush=True)


def earlier(path: Path) -> dict[str, Any]:
    """Steps of a run before this one on the same day and device; a file of another kind is not gone on with."""
    with contextlib.suppress(OSError, ValueError):
        steps = json.loads(path.read_text(encoding="utf-8"))["steps"]
        return dict(steps) if isinstance(steps, dict) else {}
    return {}


def children_env(folder: Path) -> dict[str, str]:
    """What every child gets: this checkout's package where none is installed, no state of the user's, no other Tierline."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("TIERLINE_")}
    env |= {"XDG_DATA_HOME": str(folder / "data"), "XDG_RUNTIME_DIR": str(folder / "run"), "PYTHONUNBUFFERED": "1"}
    paths = [str(ROOT / "src"), *(path for path in env.get("PYTHONPATH", "").split(":") if path)]
    env["PYTHONPATH"] = ":".join(dict.fromkeys(paths))
    return env


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--only", default="", metavar="STEP,…", help=f"of {', '.join(names)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--seconds", type=float, default=4.0, help="length of a measured window (default: %(default)s)")
    parser.add_argument("--settle", type=float, default=1.2, help="before it, not counted (default: %(default)s)")
    parser.add_argument("--check-steps", type=int, default=10, help="losses that are compared (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=470.0, help="seconds in all (default: %(default)s)")
    parser.add_argument(
        "--row-s", type=float, default=20.0, help="a row is begun with so much left (default: %(default)s)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results (default: docs/results)")
    parser.add_argument("--logs", type=Path, help="keep the logs and regions in this folder")
    parser.add_argument("--plan", action="store_true", help="print the steps and leave")
    options = parser.parse_args(argv)
    options.steps = [name for name in options.only.split(",") if name] or names
    for name in options.steps:
        if name not in names:
            parser.error(f"--only {name}: the steps are {', '.join(names)}.")
    if options.device == "cpu" and options.out is None and not options.plan:
        parser.error("--device cpu shows nothing of a GPU, so it is not written to docs/results: name a folder, --out.")
    if options.seconds <= 0 or options.settle < 0 or options.check_steps < 1:
        parser.error("--seconds is above 0, --settle 0 or more, --check-steps 1 or more.")
    options.out = options.out or ROOT / "docs" / "results"
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    chosen = [step for step in STEPS if step.name in options.steps or step.name == "probe"]
    if options.plan:
        for step in chosen:
            print(f"{step.name:10} {step.about}")
        return 0
    options.out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        if options.logs:
            folder = options.logs.absolute()
            folder.mkdir(parents=True, exist_ok=True)
        else:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tierline-gpu-")))
        (folder / "run").mkdir(mode=0o700, exist_ok=True)
        env = children_env(folder)
        sys.path[:0] = [entry for entry in env["PYTHONPATH"].split(":") if entry not in sys.path]
        os.environ |= {"XDG_DATA_HOME": env["XDG_DATA_HOME"], "XDG_RUNTIME_DIR": env["XDG_RUNTIME_DIR"]}
        from tierline import __version__

        found: dict[str, Any] = {
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "version": __version__,
            "dry_run": options.device == "cpu",
            "window_s": options.seconds,
            "steps": earlier(options.out / "gpu_kernels.json") if options.only else {},
        }
        bench = Bench(options, folder, env, time.monotonic() + options.limit, found)
        for step in chosen:
            if step.name not in ("probe", "calibrate"):
                bench.limits = bench.limits or limits_of(bench)
            run_step(bench, step)
            if step.name == "probe" and found["steps"]["probe"]["state"] != "ok":
                print(f"scripts/gpu kernels: {found['steps']['probe']['why']}", file=sys.stderr)
                return 1
        print(report.render(found))
        failed = [step.name for step in chosen if found["steps"][step.name]["state"] == "failed"]
    if failed:
        print(f"scripts/gpu kernels: failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
