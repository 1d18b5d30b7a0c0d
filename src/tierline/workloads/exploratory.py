"""`exploratory`: synthetic sweeps of trials that are steep, slow, flat or diverge, many of them stopped early.

Sweeps of `sweep_size` jobs arrive as one mixed stream. Curves: `synthetic.py`. Per sweep a base duration, lognormal
(median `median_s`, sigma 0.5); per job a factor, lognormal (0, 0.1). `stop_share` of the jobs are stopped by their user
at a hidden share of their work, uniform (0.05, 0.95); `fail_share` fail at a hidden share, uniform (0, 1). A share
`elastic` of the jobs run on 1 to 4 GPUs with measured speeds n^e, e ~ U(0.6, 0.95); a share `gang` need 2 or 4 at once.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.core.nouns import Job, Sweep
from tierline.perf.truth import Arrival, Normaliser, Truth, Workload
from tierline.workloads.source import Scale, generator, poisson_arrivals_ns
from tierline.workloads.synthetic import curves, draw_kinds
from tierline.workloads.taskset import normalise


@dataclass(frozen=True, slots=True)
class Options:
    sweep_size: int = 20
    points: int = 50
    median_s: float = 3600.0
    stop_share: float = 0.3
    fail_share: float = 0.02
    elastic: float = 0.0
    gang: float = 0.0
    noise: float = 0.01


@dataclass(frozen=True, slots=True)
class Recipe:
    options: Options
    scale: Scale


def build(path: str, options: Options, scale: Scale) -> Workload:
    """Raises InvalidInput for shares outside 0..1 or sizes below 1."""
    shares = (options.stop_share, options.fail_share, options.elastic, options.gang, options.elastic + options.gang)
    if not all(0.0 <= share <= 1.0 for share in shares):
        raise InvalidInput("stop_share, fail_share, elastic, gang and elastic + gang must each lie in 0..1.")
    if options.sweep_size < 1 or options.points < 1 or options.median_s <= 0:
        raise InvalidInput("sweep_size and points must be at least 1, and median_s above 0.")
    jobs = scale.jobs or 200
    rng = generator("exploratory", scale.seed)
    count = -(-jobs // options.sweep_size)
    dealt = rng.permutation(np.arange(jobs) % count)
    base_s = options.median_s * np.exp(0.5 * rng.standard_normal(count))
    duration_s = np.round(base_s[dealt] * np.exp(0.1 * rng.standard_normal(jobs)), 6)
    stop = np.where(rng.random(jobs) < options.stop_share, np.round(rng.uniform(0.05, 0.95, jobs), 9), 1.0)
    fail = np.where(rng.random(jobs) < options.fail_share, np.round(rng.uniform(0.0, 1.0, jobs), 9), 1.0)
    shape, exponent, gang_gpus = rng.random(jobs), rng.uniform(0.6, 0.95, jobs), rng.choice([2, 4], jobs)
    gpus = np.where((shape >= options.elastic) & (shape < options.elastic + options.gang), gang_gpus, 1)
    work_gpu_s = float((duration_s * np.minimum(stop, fail) * gpus).sum())
    times_ns = poisson_arrivals_ns(rng, jobs, work_gpu_s, scale)
    sweeps = tuple(Sweep(f"sweep-{number:03d}", user=f"user-{number % 5}", chance=1.0) for number in range(count))
    steps = np.arange(options.points + 1, dtype=np.int64)
    losses = curves(rng, draw_kinds(rng, jobs), options.points, options.noise)
    entries = []
    for row in range(jobs):
        elastic = bool(shape[row] < options.elastic)
        speeds = tuple((n, round(float(n ** exponent[row]), 6)) for n in (1, 2, 4)) if elastic else ()
        job = Job(
            job_id=f"job-{row:05d}",
            user=sweeps[dealt[row]].user,
            sweep=sweeps[dealt[row]].sweep_id,
            min_gpus=int(gpus[row]),
            max_gpus=4 if elastic else int(gpus[row]),
            total_steps=options.points,
            speedup=speeds,
        )
        entries.append(
            Arrival(
                times_ns[row],
                job,
                Truth(steps, losses[row], float(duration_s[row]), float(stop[row]), float(fail[row])),
            )
        )
    scales: tuple[Normaliser, ...] = normalise(sweeps, tuple(entries), 1.0)
    return Workload("exploratory", Recipe(options, scale), sweeps, scales, tuple(entries), scale.gpus)
