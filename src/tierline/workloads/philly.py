"""`philly:FILE`: jobs of Microsoft's Philly cluster (timestamp, duration, GPUs, virtual cluster) as kept by Pollux.

From the file: arrival, duration, GPUs (a gang, never split), virtual cluster (the job's user). The trace knows no
sweeps; successive jobs of a virtual cluster with the same number of GPUs are taken as one sweep of at most `sweep_size`,
so that losses compare within something like one person's trials. Curves are synthetic (`synthetic.py`), with `points`
reports a job. A synthetic `stop_share` of the jobs are stopped early, uniform (0.05, 0.95) of the synthetic full work,
and the file's duration is the time until then: the trace's work is kept as it is. `--load 0` keeps the arrival times,
any other load stretches them. Jobs larger than the cluster (`--gpus`) are left out, and how many stands in the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
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
    stop_share: float = 0.3
    sweep_size: int = 20
    noise: float = 0.01


@dataclass(frozen=True, slots=True)
class Recipe:
    file: str
    options: Options
    scale: Scale
    too_large: int


def build(path: str, options: Options, scale: Scale) -> Workload:
    """Raises InvalidInput for a file without the five columns, or options out of range."""
    if options.points < 1 or options.sweep_size < 1 or not 0.0 <= options.stop_share <= 1.0:
        raise InvalidInput("points and sweep_size must be at least 1, and stop_share in 0..1.")
    file = Path(path)
    table = read_table(file, ("timestamp", "duration", "num_gpus", "cluster"))
    durations = numbers(file, "duration", [row[1] for row in table])
    sizes = [int(n) for n in numbers(file, "num_gpus", [row[2] for row in table])]
    try:
        stamps = [datetime.fromisoformat(row[0]).timestamp() for row in table]
    except ValueError as error:
        raise InvalidInput(f"{file.name}, column timestamp: {error}.") from error
    fitting = [i for i in range(len(table)) if 1 <= sizes[i] <= scale.gpus and durations[i] > 0]
    chosen = sorted(fitting, key=lambda i: (stamps[i], i))[: scale.jobs or None]
    if not chosen:
        raise InvalidInput(f"{file.name} holds no job that fits on {scale.gpus} GPUs.")
    work_gpu_s = sum(durations[i] * sizes[i] for i in chosen)
    times_ns = rescaled_ns([stamps[i] for i in chosen], work_gpu_s, scale)

    rng = generator("philly", scale.seed)
    stopped = rng.random(len(chosen)) < options.stop_share
    stop = np.where(stopped, np.round(rng.uniform(0.05, 0.95, len(chosen)), 9), 1.0)
    losses = curves(rng, draw_kinds(rng, len(chosen)), options.points, options.noise)
    steps = np.arange(options.points + 1, dtype=np.int64)
    filled: dict[tuple[str, int], int] = {}
    sweeps: dict[str, Sweep] = {}
    entries = []
    for row, i in enumerate(chosen):
        user, gpus = table[i][3], sizes[i]
        seen = filled.get((user, gpus), 0)
        filled[user, gpus] = seen + 1
        sweep = f"{user}-{gpus}g-{seen // options.sweep_size:04d}"
        sweeps.setdefault(sweep, Sweep(sweep, user=user, chance=1.0))
        job = Job(f"job-{row:05d}", user=user, sweep=sweep, min_gpus=gpus, max_gpus=gpus, total_steps=options.points)
        truth = Truth(steps, losses[row], round(durations[i] / float(stop[row]), 6), float(stop[row]))
        entries.append(Arrival(times_ns[row], job, truth))
    declared = tuple(sweeps.values())
    recipe = Recipe(file.name, options, scale, too_large=len(table) - len(fitting))
    scales = normalise(declared, tuple(entries), 1.0)
    return Workload("philly", recipe, declared, scales, tuple(entries), scale.gpus)
