"""The built-in serving engine on a real GPU: Transformers' own tokens, how fast, what moves cost, what memory it takes.

    scripts/gpu serving                          all steps, below eight minutes on one H100
    scripts/gpu serving --only parity,moves      some of them; the others' earlier results stay
    scripts/gpu serving --plan                   say what would be run, and run nothing

It needs a Python with torch and transformers, and neither HTTP nor sockets; nothing is downloaded, all models are random. The
figures go to serving_gpu.json and serving_gpu.md in docs/results (or `--out`), and are written anew with every row, so that a
run which is cut short keeps what it has. Each step is a process of its own with a time limit. `--device cpu` runs the same
code in tiny sizes: it shows that the script works and that tokens are equal, and nothing of a GPU, so it needs `--out`.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gpu_serving_report as report

ROOT = Path(__file__).resolve().parent.parent
NAME = "serving_gpu"
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Step:
    """`place`: module and function. `limit_s`: then it is ended. `worth_s`: with less time than this left it is not begun."""

    name: str
    about: str
    place: str
    limit_s: float
    worth_s: float


STEPS = (
    Step("probe", "what this machine has", "gpu_serving_steps:probe", 60, 0),
    Step("parity", "Transformers' tokens: fp32 equal, bf16 as a rate", "gpu_serving_parity:parity", 130, 40),
    Step("throughput", "a 135M shape, 128 in and 64 out", "gpu_serving_steps:throughput", 110, 40),
    Step("moves", "a decoding sequence from one instance to another", "gpu_serving_transfers:moves", 50, 25),
    Step("transfers", "KV and embeddings between arenas", "gpu_serving_transfers:transfers", 40, 20),
    Step("beside", "images beside decodes and prompts", "gpu_serving_beside:beside", 60, 30),
    Step("large", "throughput of a 3B shape", "gpu_serving_steps:large", 110, 40),
    Step("memory", "the arena's size, and use over many steps", "gpu_serving_steps:memory", 80, 40),
)


class StepFailed(RuntimeError):
    """The message says why, with the end of what the step said."""


def run_here(step: Step, device: str, tell: Callable[[Row], None]) -> None:
    """Run a step in this process. Raises whatever it raises."""
    from gpu_serving_step import DRY, FULL

    if device == "cpu":
        import torch

        torch.set_num_threads(1)  # threads that wait for busy cores make tiny sizes slow
    module, _, name = step.place.partition(":")
    getattr(importlib.import_module(module), name)(FULL if device == "cuda" else DRY, tell)


def run_apart(step: Step, device: str, limit_s: float, tell: Callable[[Row], None]) -> None:
    """Run a step in a process of its own, so that what breaks the device's context breaks this step alone."""
    argv = [sys.executable, str(Path(__file__)), "--child", step.name, "--device", device]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=log, text=True, cwd=ROOT)
        assert process.stdout is not None
        late = threading.Timer(limit_s, process.kill)
        late.start()
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    tell(json.loads(line))
            code = process.wait()
        finally:
            over = not late.is_alive()
            late.cancel()
            process.kill()
            process.wait()
            process.stdout.close()
        if code:
            log.seek(0)
            said = " | ".join(log.read().strip().splitlines()[-6:])
            raise StepFailed(f"not done within {limit_s:.0f} s" if over else f"exit code {code}: {said}")


def run_step(options: argparse.Namespace, found: Row, step: Step, left_s: float) -> None:
    if left_s < step.worth_s:
        keep(options, found, step.name, {"state": "skipped", "why": f"out of time; run it with --only {step.name}"})
        return
    print(f"{step.name}: {step.about} …", flush=True)
    began_s = time.monotonic()
    found["steps"].pop(step.name, None)
    rows: list[Row] = []

    def tell(row: Row) -> None:
        rows.append(row)
        keep(options, found, step.name, {"state": "under way", "rows": rows})

    from gpu_serving_step import Lacking

    told: Row = {"state": "ok"}
    try:
        if options.here:
            run_here(step, options.device, tell)
        else:
            run_apart(step, options.device, min(step.limit_s, left_s), tell)
    except Lacking as error:
        told = {"state": "skipped", "why": str(error)}
    except StepFailed as error:
        told = {"state": "failed", "why": str(error)}
    except Exception as error:  # a step that breaks must not take the others' results with it
        told = {"state": "failed", "why": f"{type(error).__name__}: {error}"}
    if rows and "lacking" in rows[-1]:
        told = {"state": "skipped", "why": rows.pop()["lacking"]}
    told |= {"rows": rows, "date": found["date"], "took_s": round(time.monotonic() - began_s, 1)}
    keep(options, found, step.name, told)
    why = f": {told['why']}" if "why" in told else ""
    print(f"  {told['state']} after {told['took_s']:.0f} s{why}", flush=True)


def keep(options: argparse.Namespace, found: Row, name: str, told: Row) -> None:
    """Write the files anew, with what there is by now; each is replaced whole."""
    found["steps"][name] = {**found["steps"].get(name, {}), **told}
    for file, text in {f"{NAME}.json": json.dumps(found, indent=1) + "\n", f"{NAME}.md": report.render(found)}.items():
        partial = options.out / f".{file}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, options.out / file)


def child(name: str, device: str) -> int:
    """One step: its rows as lines of JSON."""
    from gpu_serving_step import Lacking

    def tell(row: Row) -> None:
        print(json.dumps(row), flush=True)

    step = next(each for each in STEPS if each.name == name)
    try:
        run_here(step, device, tell)
    except Lacking as error:
        tell({"lacking": str(error)})
    return 0


def earlier(path: Path) -> Row:
    """Steps of a run before this one."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return dict(json.loads(path.read_text(encoding="utf-8"))["steps"])
    return {}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/gpu serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [step.name for step in STEPS]
    parser.add_argument("--only", default="", metavar="STEP,…", help=f"of {', '.join(names)}")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--limit", type=float, default=465.0, help="seconds in all (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: docs/results)")
    parser.add_argument(
        "--here", action="store_true", help="all steps in this process, without time limits of their own"
    )
    parser.add_argument("--plan", action="store_true", help="print the steps and leave")
    parser.add_argument("--child", choices=names, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    options.steps = [name for name in options.only.split(",") if name] or names
    for name in options.steps:
        if name not in names:
            parser.error(f"--only {name}: the steps are {', '.join(names)}.")
    if options.device == "cpu" and options.out is None and not (options.plan or options.child):
        parser.error("--device cpu shows nothing of a GPU, so it is not written to docs/results: name a folder, --out.")
    options.out = options.out or ROOT / "docs" / "results"
    return options


def main(argv: list[str] | None = None) -> int:
    options = parse(argv)
    source = str(ROOT / "src")
    if source not in sys.path:
        sys.path.insert(0, source)
    if options.child:
        return child(options.child, options.device)
    chosen = [step for step in STEPS if step.name in options.steps or step.name == "probe"]
    if options.plan:
        for step in chosen:
            print(f"{step.name:10} {step.about}")
        return 0
    from tierline import __version__

    options.out.mkdir(parents=True, exist_ok=True)
    found: Row = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "version": __version__,
        "dry_run": options.device == "cpu",
        "steps": earlier(options.out / f"{NAME}.json") if options.only else {},
    }
    until_s = time.monotonic() + options.limit
    for step in chosen:
        run_step(options, found, step, until_s - time.monotonic())
        if step.name == "probe" and found["steps"]["probe"]["state"] != "ok":
            print(f"scripts/gpu serving: {found['steps']['probe'].get('why')}", file=sys.stderr)
            return 1
    print(report.render(found))
    wrong = report.wrong(found)
    for what in wrong:
        print(f"scripts/gpu serving: {what}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
