"""`alibaba:FILE`: pods of Alibaba's GPU cluster (trace 2023, openb) as jobs.

Pods without a GPU, and pods that were never scheduled, are left out. A pod holds whole GPUs here: its fraction
(`gpu_milli` of one) is rounded up, since nothing in this tier enforces fractions. Duration: deletion − scheduling;
arrival: creation. Pods that ended as Failed fail at the end of that time, set at a share uniform (0.3, 1) of their
synthetic full work; all others run to their end. User: the quality-of-service class; successive pods of a class form
sweeps of at most `sweep_size`. Curves are synthetic (`synthetic.py`), `points` reports a job. `longest_s` cuts off
durations (0 = none), for a few pods run as long as the whole trace.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.core.nouns import Job, Sweep
from tierline.perf.truth import Arrival, Truth, Workload
from tierline.workloads.source import Scale, generator, rescaled_ns
from tierline.workloads.synthetic import curves, draw_kinds
from tierline.workloads.table import numbers, read_table
from tierline.workloads.taskset import normalise


@dataclass(frozen=True, slots=True)
class Options:
    points: int = 12
    sweep_size: int = 20
    longest_s: float = 0.0
    noise: float = 0.01


@dataclass(frozen=True, slots=True)
class Recipe:
    file: str
    options: Options
    scale: Scale
    left_out: int


def build(path: str, options: Options, scale: Scale) -> Workload:
    """Raises InvalidInput for a file without the columns, or options out of range."""
    if options.points < 1 or options.sweep_size < 1 or options.longest_s < 0:
        raise InvalidInput("points and sweep_size must be at least 1, and longest_s 0 or more.")
    file = Path(path)
    names = ("num_gpu", "qos", "pod_phase", "creation_time", "deletion_time", "scheduled_time")
    table = [row for row in read_table(file, names) if row[5] and row[4]]
    gpus = [int(n) for n in numbers(file, "num_gpu", [row[0] for row in table])]
    created = numbers(file, "creation_time", [row[3] for row in table])
    ended = numbers(file, "deletion_time", [row[4] for row in table])
    begun = numbers(file, "scheduled_time", [row[5] for row in table])
    fitting = [i for i in range(len(table)) if 1 <= gpus[i] <= scale.gpus and ended[i] > begun[i]]
    chosen = sorted(fitting, key=lambda i: (created[i], i))[: scale.jobs or None]
    if not chosen:
        raise InvalidInput(f"{file.name} holds no pod with GPUs that fits on {scale.gpus} GPUs.")
    longest = options.longest_s or float("inf")
    ran_s = {i: min(ended[i] - begun[i], longest) for i in chosen}
    times_ns = rescaled_ns([created[i] for i in chosen], sum(ran_s[i] * gpus[i] for i in chosen), scale)

    rng = generator("alibaba", scale.seed)
    filled: dict[str, int] = {}
    sweeps: dict[str, Sweep] = {}
    entries = []
    steps = np.arange(options.points + 1, dtype=np.int64)
    drawn = np.round(rng.uniform(0.3, 1.0, len(chosen)), 9)
    losses = curves(rng, draw_kinds(rng, len(chosen)), options.points, options.noise)
    for row, i in enumerate(chosen):
        user = table[i][1].lower() or "none"
        seen = filled.get(user, 0)
        filled[user] = seen + 1
        sweep = f"{user}-{seen // options.sweep_size:04d}"
        sweeps.setdefault(sweep, Sweep(sweep, user=user, chance=1.0))
        fail = float(drawn[row]) if table[i][2] == "Failed" else 1.0
        job = Job(
            f"job-{row:05d}", user=user, sweep=sweep, min_gpus=gpus[i], max_gpus=gpus[i], total_steps=options.points
        )
        truth = Truth(steps, losses[row], round(ran_s[i] / fail, 6), fail_fraction=fail)
        entries.append(Arrival(times_ns[row], job, truth))
    declared = tuple(sweeps.values())
    recipe = Recipe(file.name, options, scale, left_out=len(table) - len(fitting))
    return Workload("alibaba", recipe, declared, normalise(declared, tuple(entries), 1.0), tuple(entries), scale.gpus)
