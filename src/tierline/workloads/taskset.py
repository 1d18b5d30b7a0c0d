"""`taskset:DIR`: real learning curves (TaskSet, as packaged in releaunifreiburg/DyHPO, Apache-2.0).

The recipe. Every npz file in DIR (else every JSON file, as published), sorted by name, is one sweep, its loss
`valid_loss`. Jobs are dealt to the files in
balanced random order; each draws its runs without replacement. Chance B = ln(classes), declared in the sweep. A job
declares its steps (50) and its hyperparameters, holds one GPU, and belongs to the sweep's user. Per file a base
duration, lognormal (median 3600 s, sigma 0.5); per job a factor, lognormal (0, 0.1). 30 % of the jobs are stopped by
their user at a hidden share of their work, uniform (0.05, 0.95). Arrivals: exponential gaps, scaled so that the last
comes at total work (up to the stops) / (load · gpus).
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from tierline.core.errors import InvalidInput
from tierline.core.nouns import Job, Sweep
from tierline.core.views import Floats
from tierline.perf.truth import Arrival, Normaliser, Truth, Workload
from tierline.workloads.source import Scale, generator, poisson_arrivals_ns


@dataclass(frozen=True, slots=True)
class Options:
    classes: int = 2
    stop_share: float = 0.3
    median_s: float = 3600.0
    sigma: float = 0.5


@dataclass(frozen=True, slots=True)
class Recipe:
    files: tuple[str, ...]
    options: Options
    scale: Scale


def build(path: str, options: Options, scale: Scale) -> Workload:
    """Raises InvalidInput when a file lacks a column, or holds fewer runs than the jobs dealt to it."""
    found = list(Path(path).glob("*.npz")) or list(Path(path).glob("*.json"))
    files = sorted(found, key=lambda file: file.name)
    if not files:
        raise InvalidInput(f"'{path}' holds no npz or JSON file with learning curves.")
    jobs = scale.jobs or 200
    rng = generator("taskset", scale.seed)
    dealt = rng.permutation(np.arange(jobs) % len(files))
    base_s = options.median_s * np.exp(options.sigma * rng.standard_normal(len(files)))
    curves: list[Floats] = [np.empty(0)] * jobs
    params: list[tuple[tuple[str, float], ...]] = [()] * jobs
    for number, file in enumerate(files):
        losses, values, names = _read(file)
        rows = np.flatnonzero(dealt == number)
        if len(rows) > len(losses):
            raise InvalidInput(
                f"{file.name} holds {len(losses)} runs, but {len(rows)} of the {jobs} jobs need one each."
            )
        for row, run in zip(rows, rng.choice(len(losses), len(rows), replace=False), strict=True):
            curves[row] = losses[run]
            params[row] = tuple((name, float(value)) for name, value in zip(names, values[run], strict=True))
    # rounded, so that the last bit of a processor's exp() does not change the workload's hash
    duration_s = np.round(base_s[dealt] * np.exp(0.1 * rng.standard_normal(jobs)), 6)
    stopped = rng.random(jobs) < options.stop_share
    stop_fraction = np.where(stopped, np.round(rng.uniform(0.05, 0.95, jobs), 9), 1.0)
    times_ns = poisson_arrivals_ns(rng, jobs, float((duration_s * stop_fraction).sum()), scale)

    chance = math.log(options.classes)
    sweeps = tuple(Sweep(f.stem, user=f"user-{number}", chance=chance) for number, f in enumerate(files))
    entries = tuple(
        Arrival(
            times_ns[row],
            Job(
                job_id=f"job-{row:05d}",
                user=sweeps[dealt[row]].user,
                sweep=sweeps[dealt[row]].sweep_id,
                total_steps=len(curves[row]) - 1,
                params=params[row],
            ),
            Truth(
                np.arange(len(curves[row]), dtype=np.int64),
                curves[row],
                float(duration_s[row]),
                float(stop_fraction[row]),
            ),
        )
        for row in range(jobs)
    )
    return Workload(
        name="taskset",
        recipe=Recipe(tuple(file.name for file in files), options, scale),
        sweeps=sweeps,
        normalisers=normalise(sweeps, entries, chance),
        entries=entries,
        gpus=scale.gpus,
    )


def normalise(sweeps: tuple[Sweep, ...], entries: tuple[Arrival, ...], chance: float | None) -> tuple[Normaliser, ...]:
    """Fixed scales from the full curves: B as given (None: the median first finite loss), F the lowest finite loss."""
    lowest = {sweep.sweep_id: math.inf for sweep in sweeps}
    first: dict[str, list[float]] = {sweep.sweep_id: [] for sweep in sweeps}
    for entry in entries:
        finite = entry.truth.losses[np.isfinite(entry.truth.losses)]
        if len(finite):
            lowest[entry.job.sweep] = min(lowest[entry.job.sweep], float(finite.min()))
            first[entry.job.sweep].append(float(finite[0]))
    scales = []
    for sweep in sweeps:
        seen = first[sweep.sweep_id]
        top = chance if chance is not None else float(np.median(seen)) if seen else 1.0
        scales.append(Normaliser(top, min(lowest[sweep.sweep_id], top)))
    return tuple(scales)


def _read(file: Path) -> tuple[Floats, Floats, list[str]]:
    """(losses (runs × points), hyperparameters (runs × n), their names) of one file."""
    try:
        losses, values, names = _read_json(file) if file.suffix == ".json" else _read_npz(file)
    except (KeyError, IndexError, TypeError, ValueError, OSError, BadZipFile) as error:
        raise InvalidInput(
            f"{file.name} is not a curve file: it needs valid_loss, hyperparameters and hyperparameter_names ({error})."
        ) from error
    if losses.ndim != 2 or values.ndim != 2 or len(values) != len(losses) or losses.shape[1] < 2:
        raise InvalidInput(f"{file.name}: valid_loss {losses.shape} and hyperparameters {values.shape} do not match.")
    # beyond a million a loss is as good as infinite, and squares of it would overflow a fit
    losses[~(np.abs(losses) < 1e6)] = np.nan
    return losses, values, names


def _read_npz(file: Path) -> tuple[Floats, Floats, list[str]]:
    with np.load(file) as data:
        losses = np.array(data["valid_loss"], dtype=np.float64)
        values = np.array(data["hyperparameters"], dtype=np.float64)
        return losses, values, [str(name) for name in data["hyperparameter_names"]]


def _read_json(file: Path) -> tuple[Floats, Floats, list[str]]:
    """The published form: a list of runs, each with `hp` (name -> value) and `valid` -> `loss` (points)."""
    runs = json.loads(file.read_text(encoding="utf-8"))
    names = sorted(runs[0]["hp"])
    losses = np.array([run["valid"]["loss"] for run in runs], dtype=np.float64)
    return losses, np.array([[run["hp"][name] for name in names] for run in runs], dtype=np.float64), names
