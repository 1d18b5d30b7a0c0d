"""A short real sweep on this machine's GPUs through `tierline up`; the figures go to docs/results/gpu.json and gpu.md.

The training is examples/train_digits_torch.py where torch finds CUDA, else examples/train_digits.py, which holds its GPU
without computing on it; the results say which. The daemon lives in a folder of its own and is gone at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tierline import __version__
from tierline.backends.jobs.devices import open_nvml
from tierline.cli.client import Client, connect
from tierline.core.errors import TierlineError

ROOT = Path(__file__).resolve().parent.parent
TIERLINE = (sys.executable, "-m", "tierline.cli.main")
SWEEP = "gpu"
CHANCE = "2.3026"  # ln 10: what guessing among ten digits costs
LOOK_EVERY_S = 0.5
LEAVE_S = 30.0


def cuda_torch() -> str:
    """The version of a torch that finds CUDA, else ""."""
    code = "import torch; print(torch.__version__ if torch.cuda.is_available() else '')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


@contextlib.contextmanager
def daemon(quantum_s: float) -> Iterator[tuple[Client, dict[str, str]]]:
    """A daemon over this machine's GPUs; its jobs, itself and its folder are gone afterwards."""
    state = Path(tempfile.mkdtemp(prefix="tierline-gpu-"))
    env = {key: value for key, value in os.environ.items() if key not in ("TIERLINE_URL", "TIERLINE_TOKEN")}
    env["TIERLINE_HOME"] = str(state)
    up = [*TIERLINE, "up", "--quantum", str(quantum_s), "--restart-cost", "2", "--detach"]
    try:
        subprocess.run(up, env=env, check=True)
        with connect(state) as client:
            try:
                yield client, env
            finally:
                with contextlib.suppress(TierlineError):
                    for job in client.jobs():
                        client.stop(job.job_id, "the run is over")
                    until = time.monotonic() + LEAVE_S
                    while client.jobs() and time.monotonic() < until:
                        time.sleep(LOOK_EVERY_S)
                subprocess.run([*TIERLINE, "down"], env=env, check=False)
    finally:
        shutil.rmtree(state, ignore_errors=True)


def run_sweep(options: argparse.Namespace, script: str) -> dict[str, Any]:
    """The sweep to its end, or to `--limit` seconds; returns what was seen."""
    with daemon(options.quantum) as (client, env):
        devices = client.cluster().devices
        if any(device.gpu_type == "cpu" for device in devices):
            raise SystemExit("scripts/gpu_sweep.py: the daemon found no GPU, only CPU slots.")
        command = [*TIERLINE, "sweep", "--name", SWEEP, "--chance", CHANCE, "--trials", str(options.trials)]
        command += ["--random", "lr=log:1e-4..10", "--random", "width=64,512,2048"]
        command += ["--", sys.executable, script, "--lr", "{lr}", "--width", "{width}", "--budget", str(options.budget)]
        subprocess.run(command, cwd=ROOT / "examples", env=env, check=True)
        began = time.monotonic()
        while client.jobs() and time.monotonic() - began < options.limit:
            time.sleep(LOOK_EVERY_S)
        took_s = time.monotonic() - began
        jobs = client.jobs(all=True)
        used: dict[str, set[str]] = {
            job.job_id: {device for entry in client.why(job.job_id).decisions for device in entry.devices}
            for job in jobs
        }
        return {
            "devices": [{"id": d.device_id, "type": d.gpu_type, "memory_bytes": d.memory_bytes} for d in devices],
            "seconds": round(took_s, 1),
            "trials": [
                {
                    "job_id": job.job_id,
                    "phase": job.phase,
                    "reason": job.reason,
                    "attempts": job.attempt,
                    "gpu_s": round(job.attained_gpu_s, 2),
                    "best_loss": job.best_loss,
                    "devices": sorted(used[job.job_id]),
                }
                for job in jobs
            ],
        }


def table(found: dict[str, Any]) -> str:
    """The figures as Markdown."""
    trials, gpus = found["trials"], found["hardware"]["gpus"]
    best = min((t["best_loss"] for t in trials if t["best_loss"] is not None), default=None)
    used = sum(t["gpu_s"] for t in trials)
    rows = {
        "trials": len(trials),
        "completed": sum(t["phase"] == "completed" for t in trials),
        "restarts": sum(max(t["attempts"] - 1, 0) for t in trials),
        "best validation loss": "-" if best is None else f"{best:.4f}",
        "wall-clock seconds": found["seconds"],
        "GPU-seconds used": f"{used:.1f} of {found['seconds'] * len(found['devices']):.1f}",
    }
    head = (
        "# A sweep on real GPUs\n\n"
        f"Measured on {found['date']} with {', '.join(gpus)} (driver {found['hardware']['driver']}), "
        f"{found['hardware']['cores']} cores, Python {found['hardware']['python']}, Tierline {found['version']}; "
        f"training: {found['training']}. Repeat it with `./scripts/gpu`; every trial is in gpu.json.\n"
    )
    lines = ["| figure | value |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return head + "\n" + "\n".join(lines) + "\n"


def driver_version() -> str:
    done = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"], capture_output=True, text=True
    )
    return (done.stdout.split() or ["unknown"])[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12, help="(default: %(default)s)")
    parser.add_argument("--budget", type=float, default=8.0, help="seconds of training a trial (default: %(default)s)")
    parser.add_argument("--quantum", type=float, default=3.0, help="seconds between decisions (default: %(default)s)")
    parser.add_argument("--limit", type=float, default=300.0, help="seconds in all (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results", help="(default: docs/results)")
    options = parser.parse_args()
    nvml = open_nvml()
    gpus = [] if nvml is None else list(nvml.gpus())
    if not gpus:
        print("scripts/gpu_sweep.py: NVML finds no GPU on this machine, so there is nothing to measure.")
        return
    torch = cuda_torch()
    script = "train_digits_torch.py" if torch else "train_digits.py"
    found = run_sweep(options, script) | {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "version": __version__,
        "training": f"examples/{script}, torch {torch}" if torch else f"examples/{script} (numpy, the GPU held only)",
        "hardware": {
            "gpus": [f"{gpu.name} {gpu.memory_bytes / 2**30:.0f} GiB" for gpu in gpus],
            "driver": driver_version(),
            "cores": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
        },
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    text = table(found)
    (options.out / "gpu.md").write_text(text, encoding="utf-8")
    print(text)
    ill = [t for t in found["trials"] if t["phase"] != "completed"]
    if ill:
        raise SystemExit(
            f"scripts/gpu_sweep.py: {len(ill)} trials did not complete: {ill[0]['job_id']} {ill[0]['reason']}"
        )


if __name__ == "__main__":
    main()
