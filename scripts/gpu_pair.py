"""Several jobs as threads of one process, each on a CUDA stream of its own: the programs of gpu_programs.py.

    python gpu_pair.py --job serve=serve:how=graphs,rate=150,priority=high --job train=train:model=conv --seconds 5

With `--clients` each thread is a client of the interposer (`tierline.kernels.client`), which has to be in the process;
without it the threads have plain streams, all of one priority or (`--streams priority`) high-priority jobs on streams of
high priority. `--turns` runs the jobs one after another instead of together: what each does alone. A server's rate may be
`load:0.4`, the rate that keeps the device busy for that share of the time, taken from what the first such server's requests
cost alone (`--turns` only).

With `--hold` the process stops twice, says so on stdout and waits for a line on stdin: when torch is imported, before it
touches the device, and when all jobs are ready. So the next measurement can be made ready while one is under way, and several
processes can start at one instant. One job a process makes the jobs processes of their own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import threading
import time
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import gpu_programs as programs
import torch

KEYS = ("how", "model", "rate", "priority", "seed")
SERVICE_S = 1.5  # back to back, to learn what a request costs
HEAD_START_S = 0.2


@dataclass(slots=True)
class Job:
    """One thread's work. `rate` 0 = back to back; `load` > 0 = to be derived from the service time."""

    name: str
    kind: str
    how: str = "eager"
    model: str = "conv"
    priority: str = "best-effort"
    seed: int = 1
    rate: float = 0.0
    load: float = 0.0
    program: Any = None
    ready: threading.Event = field(default_factory=threading.Event)
    start: threading.Event = field(default_factory=threading.Event)
    done: threading.Event = field(default_factory=threading.Event)
    window: tuple[float, float] = (0.0, 0.0)
    result: dict[str, Any] = field(default_factory=dict)


def parse_job(text: str) -> Job:
    """`NAME=train|serve:key=value,…`."""
    name, equals, rest = text.partition("=")
    kind, _, options = rest.partition(":")
    if not name or not equals or kind not in ("train", "serve"):
        raise SystemExit(f"gpu_pair.py: --job '{text}': NAME=train or NAME=serve is needed, then :key=value,…")
    job = Job(name, kind)
    for pair in filter(None, options.split(",")):
        key, _, value = pair.partition("=")
        if key not in KEYS or not value:
            raise SystemExit(f"gpu_pair.py: --job '{text}': '{pair}' is not one of {', '.join(KEYS)} with a value.")
        if key == "rate" and value.startswith("load:"):
            job.load = float(value.removeprefix("load:"))
        elif key in ("rate", "seed"):
            setattr(job, key, type(getattr(job, key))(value))
        else:
            setattr(job, key, value)
    known = {"how": programs.HOWS, "model": programs.MODELS, "priority": ("high", "best-effort")}
    for key, allowed in known.items():
        if getattr(job, key) not in allowed:
            raise SystemExit(f"gpu_pair.py: --job '{text}': {key} is one of {', '.join(allowed)}.")
    return job


def latency(values_s: Sequence[float]) -> dict[str, Any]:
    """Quantiles by nearest rank."""
    ranked = sorted(values_s)
    if not ranked:
        return {"count": 0}
    rank = {q: ranked[min(max(math.ceil(q * len(ranked)) - 1, 0), len(ranked) - 1)] for q in (0.5, 0.9, 0.99)}
    return {
        "count": len(ranked),
        "mean_s": sum(ranked) / len(ranked),
        "p50_s": rank[0.5],
        "p90_s": rank[0.9],
        "p99_s": rank[0.99],
        "max_s": ranked[-1],
    }


def stream_of(job: Job, device: str, clients: bool, streams: str) -> AbstractContextManager[Any]:
    if clients:
        from tierline import kernels

        warnings.simplefilter(
            "error", kernels.OutsideTierline
        )  # without the interposer the figures would be another thing's
        return kernels.client(priority=job.priority, name=job.name)
    if device == "cpu":
        return contextlib.nullcontext()
    high = streams == "priority" and job.priority == "high"
    return torch.cuda.stream(torch.cuda.Stream(priority=-1 if high else 0))


def run_job(job: Job, options: argparse.Namespace, one_at_a_time: threading.Lock) -> None:
    """The thread of a job: ready, then its window, then the result; an error is a result too."""
    try:
        with stream_of(job, options.device, options.clients, options.streams):
            with one_at_a_time:
                size = programs.SIZES[options.size]
                if job.kind == "train":
                    job.program = programs.Training(job.model, job.how, options.device, size, job.seed)
                else:
                    job.program = programs.Server(job.how, options.device, size, job.seed)
                job.program.prepare()
                programs.synchronize(options.device)
            job.ready.set()
            job.start.wait()
            began_s, ended_s = job.window
            if job.kind == "train":
                job.result = programs.train_for(job.program, began_s, ended_s)
            else:
                job.result = serve(job, options.turns, began_s, ended_s)
            if options.device == "cuda":
                torch.cuda.current_stream().synchronize()
    except Exception as error:
        job.result = {"error": f"{type(error).__name__}: {error}"[:400]}
    finally:
        job.ready.set()
        job.done.set()


def serve(job: Job, turns: bool, began_s: float, ended_s: float) -> dict[str, Any]:
    """In `turns` the service time is taken first, back to back, and the window begins after that."""
    found: dict[str, Any] = {}
    if turns:
        closed = programs.serve_for(job.program, began_s, began_s + SERVICE_S, 0.0, job.seed)
        found["service_s"] = closed["seconds"] / max(closed["served"], 1)
        if job.load:
            job.rate = job.load / found["service_s"]
        seconds, began_s = ended_s - began_s, time.monotonic()
        ended_s = began_s + seconds
    told = programs.serve_for(job.program, began_s, ended_s, job.rate, job.seed)
    seen = latency(told.pop("latencies_s"))
    return found | told | {"rate": job.rate, "latency": seen}


def hold(at: str, wanted: bool) -> None:
    """Say how far this process is, and wait for a line; an end of the input ends the process."""
    if wanted:
        print(json.dumps({"at": at}), flush=True)
        if not sys.stdin.readline():
            raise SystemExit(f"gpu_pair.py: the input ended while waiting at '{at}'.")


def run(jobs: list[Job], options: argparse.Namespace) -> None:
    lock = threading.Lock()
    for job in jobs:
        threading.Thread(target=run_job, args=(job, options, lock), name=job.name, daemon=True).start()
    for job in jobs:
        job.ready.wait()
    hold("ready", options.hold)
    now_s = time.monotonic() + HEAD_START_S
    for job in jobs:
        if options.turns:
            now_s = time.monotonic() + HEAD_START_S
        job.window = (now_s + options.settle, now_s + options.settle + options.seconds)
        job.start.set()
        if options.turns:
            job.done.wait()
            load = job.load
            for other in jobs:
                if load and other.load == load:
                    other.rate, other.load = job.rate, 0.0
    for job in jobs:
        job.done.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--job", action="append", required=True, metavar="NAME=KIND:key=value,…")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--size", choices=tuple(programs.SIZES), default="full")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of the window (default: %(default)s)")
    parser.add_argument(
        "--settle", type=float, default=1.5, help="all jobs at work, not counted (default: %(default)s)"
    )
    parser.add_argument("--clients", action="store_true", help="threads are clients of the interposer")
    parser.add_argument("--streams", choices=("equal", "priority"), default="equal")
    parser.add_argument("--turns", action="store_true", help="one after another")
    parser.add_argument(
        "--hold", action="store_true", help="wait for a line before the device is touched, and when ready"
    )
    options = parser.parse_args()
    jobs = [parse_job(text) for text in options.job]
    names = [job.name for job in jobs]
    if len(set(names)) < len(names):
        raise SystemExit(f"gpu_pair.py: two jobs have one name: {', '.join(names)}.")
    if any(job.load for job in jobs) and not options.turns:
        raise SystemExit("gpu_pair.py: rate=load:… needs --turns: together, what a request costs alone cannot be seen.")
    hold("loaded", options.hold)
    for job in jobs:
        programs.check_how(job.how, options.device)
    sys.setswitchinterval(0.0005)  # a thread with a request in hand does not wait 5 ms for the interpreter
    run(jobs, options)
    found = {
        "at": "done",
        "jobs": {job.name: {"kind": job.kind, "priority": job.priority} | job.result for job in jobs},
    }
    print(json.dumps(found), flush=True)
    if any("error" in job.result for job in jobs):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
