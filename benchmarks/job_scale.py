"""How the job tier's decisions scale: time a round and an event at 10,000 live jobs on 4,096 GPUs, growth, memory, and
the Philly trace.

Setting. One-GPU jobs in sweeps of 20, all submitted at once. Between two rounds 5 % of the live jobs change: 4.5 % of
them (running ones) report a new loss, 0.25 % complete, and as many new ones arrive. The scheduler is called directly;
exits and confirmations answer its actions at once. Each size runs in a process of its own, whose peak memory is given. With
`--share` two jobs may use one device: 26 job types, random measured pairs.

    python benchmarks/job_scale.py --json - --philly FILE
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np

from tierline import __version__, experiments
from tierline.backends.jobs.sim import uniform_nodes
from tierline.core.actions import Action, PreemptJob, SetTimer, StartJob, StopJob
from tierline.core.events import (
    Event,
    JobExited,
    JobStarted,
    JobSubmitted,
    NodeJoined,
    PairsMeasured,
    ProgressReported,
    SweepDeclared,
    TimerFired,
)
from tierline.core.nouns import NS_PER_S, Job, PairSpeed, Report, Sweep
from tierline.policies.jobs import make_policy
from tierline.policies.jobs.packing import GainPacking
from tierline.schedulers.jobs import JobScheduler, JobSchedulerOptions

QUANTUM_NS = 60 * NS_PER_S
SWEEP_SIZE = 20
JOB_TYPES = 26


class Load:
    """Feeds one scheduler and answers its actions as an instant cluster would, keeping the time of every call."""

    def __init__(self, policy: str, gpus: int, share: bool = False) -> None:
        packing = GainPacking() if share else None
        self.scheduler = JobScheduler(make_policy(policy), JobSchedulerOptions(quantum_ns=QUANTUM_NS), packing)
        self.share = share
        self.now_ns = 0
        self.rng = random.Random(0)
        self.running: dict[str, int] = {}
        self.live: dict[str, None] = {}
        self.shape: dict[str, tuple[float, float]] = {}
        self.steps: dict[str, int] = {}
        self.event_s: list[float] = []
        self.round_s: list[float] = []
        self.fill_s: list[float] = []
        self.submitted = 0
        self.timers: set[str] = set()
        for node in uniform_nodes(gpus):
            self.send(NodeJoined(node))
        if share:
            speeds = random.Random(1)
            names = [f"type-{number}" for number in range(JOB_TYPES)]
            self.send(PairsMeasured(tuple(PairSpeed("", one, two, speeds.random()) for one in names for two in names)))

    def send(self, event: Event) -> None:
        queue = [event]
        while queue:
            current = queue.pop(0)
            begun = time.perf_counter()
            actions = self.scheduler.handle(self.now_ns, current)
            took = time.perf_counter() - begun
            if isinstance(current, TimerFired):
                (self.round_s if current.name == "quantum" else self.fill_s).append(took)
            else:
                self.event_s.append(took)
            for action in actions:
                queue += self.answer(action)

    def answer(self, action: Action) -> list[Event]:
        match action:
            case StartJob(job_id, attempt):
                self.running[job_id] = attempt
                return [JobStarted(job_id, attempt)]
            case PreemptJob(job_id, attempt) | StopJob(job_id, attempt):
                self.running.pop(job_id, None)
                outcome = "preempted" if isinstance(action, PreemptJob) else "stopped"
                return [JobExited(job_id, attempt, outcome, "asked")]  # type: ignore[arg-type]
            case SetTimer(name) if name != "quantum":
                self.timers.add(name)
        return []

    def submit(self) -> None:
        sweep = f"sweep-{self.submitted // SWEEP_SIZE}"
        if self.submitted % SWEEP_SIZE == 0:
            self.send(SweepDeclared(Sweep(sweep, chance=1.0)))
        job_id = f"job-{self.submitted:06d}"
        self.submitted += 1
        self.shape[job_id] = (self.rng.random(), self.rng.uniform(0.02, 0.5))
        self.live[job_id] = None
        user = f"user-{self.submitted % 50}"
        job_type = f"type-{self.submitted % JOB_TYPES}" if self.share else ""
        self.send(JobSubmitted(Job(job_id, user=user, sweep=sweep, total_steps=50, job_type=job_type)))

    def report(self, job_id: str) -> None:
        step = self.steps.get(job_id, -1) + 1
        self.steps[job_id] = step
        depth, rate = self.shape[job_id]
        loss = 1.0 - depth * (1.0 - math.exp(-rate * step))
        attempt = self.running[job_id]
        self.send(ProgressReported((Report(job_id, step, loss, self.now_ns, attempt, step + 1),)))

    def one_round(self) -> None:
        """A quantum goes by: 5 % of the live jobs change, then the round."""
        begin, count = self.now_ns, len(self.live)
        changed = self.rng.sample(sorted(self.running), min(round(0.045 * count), len(self.running)))
        done = self.rng.sample(sorted(self.running), min(round(0.0025 * count), len(self.running)))
        for number, job_id in enumerate(changed):
            self.now_ns = begin + QUANTUM_NS * number // (len(changed) + 1)
            self.report(job_id)
        for job_id in done:
            self.live.pop(job_id)
            self.send(JobExited(job_id, self.running.pop(job_id), "completed", "done", 0))
            self.submit()
        self.flush()
        self.now_ns = (begin // QUANTUM_NS + 1) * QUANTUM_NS
        self.send(TimerFired("quantum"))
        self.flush()

    def flush(self) -> None:
        while self.timers:
            self.send(TimerFired(self.timers.pop()))


def measure(policy: str, jobs: int, gpus: int, rounds: int, share: bool = False) -> dict[str, Any]:
    """Seconds of rounds and events, after three rounds of warming up; peak memory of this process in bytes."""
    load = Load(policy, gpus, share)
    begun = time.perf_counter()
    for _ in range(jobs):
        load.submit()
    submit_s = time.perf_counter() - begun
    load.flush()
    for _ in range(3):
        load.one_round()
    for kept in (load.event_s, load.round_s, load.fill_s):
        kept.clear()
    for _ in range(rounds):
        load.one_round()
    return {
        "policy": policy,
        "jobs": jobs,
        "gpus": gpus,
        "rounds": rounds,
        "submit_all_s": submit_s,
        "round_ms": quantiles(load.round_s),
        "fill_ms": quantiles(load.fill_s),
        "event_ms": quantiles(load.event_s),
        "events": len(load.event_s),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def quantiles(seconds: list[float]) -> dict[str, float]:
    p50, p99 = np.quantile(seconds, [0.5, 0.99]) * 1e3
    return {"p50": float(p50), "p99": float(p99), "max": max(seconds) * 1e3}


def philly(file: str, policy: str, gpus: int, jobs: int) -> dict[str, Any]:
    """The whole trace with its own arrival times under one policy, judged."""
    experiment = experiments.Experiment(f"philly:{file}", uniform_nodes(gpus), (policy,), jobs=jobs, loads=(0.0,))
    begun = time.perf_counter()
    workload = experiments.build_workload(experiment.source, experiment.nodes, jobs, 0.0, 0)
    built = time.perf_counter()
    record = experiments.simulate(workload, make_policy(policy), experiment)
    ended = time.perf_counter()
    return {
        "policy": policy,
        "jobs": len(workload.entries),
        "gpus": gpus,
        "hash": workload.hash,
        "load_s": built - begun,
        "simulate_s": ended - built,
        "attempts": len(record.segments),
        "unfinished": sum(end < 0 for end in record.end_ns),
        "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", default="explsched")
    parser.add_argument("--jobs", default="1000,2000,5000,10000,20000", help="live jobs, one run each")
    parser.add_argument("--gpus", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--share", action="store_true", help="two jobs may use one device")
    parser.add_argument("--philly", default="", metavar="FILE", help="also simulate the Philly trace")
    parser.add_argument("--philly-gpus", type=int, default=2490)
    parser.add_argument("--philly-jobs", type=int, default=0)
    parser.add_argument("--philly-policies", default="fifo,explsched")
    parser.add_argument("--json", default="", metavar="FILE|-")
    given = parser.parse_args()
    sizes = [int(n) for n in given.jobs.split(",") if n]
    scale = [alone(measure, given.policy, n, given.gpus, given.rounds, given.share) for n in sizes]
    trace = [
        alone(philly, given.philly, policy, given.philly_gpus, given.philly_jobs)
        for policy in given.philly_policies.split(",")
        if given.philly
    ]
    growth = None
    if len(scale) > 1:
        times = [row["round_ms"]["p50"] for row in scale]
        growth = math.log(times[-1] / times[0]) / math.log(sizes[-1] / sizes[0])
    found = {"tierline": __version__, "scale": scale, "growth_exponent": growth, "philly": trace}
    if given.json == "-":
        print(json.dumps(found, indent=1))
        return 0
    print(
        f"{'jobs':>7} {'round p50':>10} {'p99':>8} {'fill p99':>9} {'event p50':>10} {'p99':>8} {'max':>8} {'memory':>9}"
    )
    for row in scale:
        print(
            f"{row['jobs']:7d} {row['round_ms']['p50']:7.1f} ms {row['round_ms']['p99']:5.1f} ms"
            f" {row['fill_ms']['p99']:6.1f} ms {row['event_ms']['p50']:7.3f} ms {row['event_ms']['p99']:5.2f} ms"
            f" {row['event_ms']['max']:5.1f} ms {row['peak_memory_bytes'] / 2**20:5.0f} MiB"
        )
    if growth is not None:
        print(f"a round grows as jobs^{growth:.2f}")
    for row in trace:
        print(
            f"Philly under {row['policy']}: {row['jobs']} jobs on {row['gpus']} GPUs in {row['simulate_s']:.1f} s"
            f" (and {row['load_s']:.1f} s to read it), {row['peak_memory_bytes'] / 2**20:.0f} MiB"
        )
    if given.json:
        with open(given.json, "w", encoding="utf-8") as file:
            file.write(json.dumps(found, indent=1) + "\n")
    return 0


def alone(function: Any, *arguments: Any) -> dict[str, Any]:
    """Run in a fresh process, so that its peak memory is its own."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        result: dict[str, Any] = pool.submit(function, *arguments).result()
        return result


if __name__ == "__main__":
    sys.exit(main())
