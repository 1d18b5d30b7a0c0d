"""`pollux:DIR`: Pollux' job mixes (OSDI'21) over measured step times and validation curves of six models.

DIR holds `workloads/workload-N.csv` (option `workload=N`) and `traces/MODEL/`. A job trains its model at its row's
batch size and is elastic: 1 to `num_replicas` GPUs, the batch split evenly. The time of a step on n GPUs is measured:
`placements.csv` (the placement on the fewest nodes) up to 16 GPUs, `scalability.csv` above, linear between measured
local batch sizes; a local batch above the largest measured one is done in equal parts, of which only the last one
synchronises. Speeds relative to one GPU go into `Job.speedup`. Work: the iterations of `validation-BATCH.csv`.

Loss: for metrics where higher is better (accuracy, F1, hit rate) 1 − metric / highest, for deepspeech2 (word error rate)
and yolov3 (validation loss) metric / highest; highest = that value in any of the model's files. Step 0 has loss 1.0, chance.
One sweep and one user per model. `--load 0` keeps the arrival times, any other load stretches them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tierline.core.errors import InvalidInput, NotFound
from tierline.core.nouns import Job, Sweep
from tierline.core.views import Floats, Ints
from tierline.perf.truth import Arrival, Truth, Workload
from tierline.workloads.source import Scale, generator, rescaled_ns
from tierline.workloads.table import numbers, read_table
from tierline.workloads.taskset import normalise

LOWER_IS_BETTER = {"deepspeech2", "yolov3"}
SIZES = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64)
"""GPU counts whose speed is declared, besides the job's largest."""


@dataclass(frozen=True, slots=True)
class Options:
    workload: int = 1
    stop_share: float = 0.0


@dataclass(frozen=True, slots=True)
class Recipe:
    file: str
    options: Options
    scale: Scale


def build(path: str, options: Options, scale: Scale) -> Workload:
    """Raises NotFound for a missing table, InvalidInput for one that cannot be used."""
    folder = Path(path)
    file = folder / "workloads" / f"workload-{options.workload}.csv"
    rows = read_table(_existing(file), ("name", "time", "application", "num_replicas", "batch_size"))
    times = numbers(file, "time", [row[1] for row in rows])
    replicas = numbers(file, "num_replicas", [row[3] for row in rows])
    batches = numbers(file, "batch_size", [row[4] for row in rows])
    order = sorted(range(len(rows)), key=lambda i: (times[i], i))[: scale.jobs or None]
    if not order:
        raise InvalidInput(f"{file.name} holds no jobs.")
    rng = generator("pollux", scale.seed)
    stop = np.where(rng.random(len(order)) < options.stop_share, np.round(rng.uniform(0.05, 0.95, len(order)), 9), 1.0)
    models: dict[str, _Model] = {}
    jobs: list[tuple[Job, Truth]] = []
    for row, i in enumerate(order):
        name, application, batch = rows[i][0], rows[i][2], int(batches[i])
        model = models.setdefault(application, _Model(folder / "traces" / application, application))
        largest = max(1, min(int(replicas[i]), scale.gpus))
        step_s = {n: model.step_s(n, batch) for n in sorted({*(n for n in SIZES if n < largest), largest})}
        steps, losses = model.curve(batch)
        job = Job(
            job_id=f"{name}-{row:05d}",
            user=application,
            sweep=application,
            max_gpus=largest,
            total_steps=int(steps[-1]),
            params=(("batch_size", batch),),
            speedup=tuple((n, round(step_s[1] / t, 6)) for n, t in step_s.items()) if largest > 1 else (),
        )
        jobs.append((job, Truth(steps, losses, round(int(steps[-1]) * step_s[1], 6), float(stop[row]))))
    work_gpu_s = sum(truth.duration_s * truth.stop_fraction for _, truth in jobs)
    arrivals = rescaled_ns([times[i] for i in order], work_gpu_s, scale)
    entries = tuple(Arrival(at, job, truth) for at, (job, truth) in zip(arrivals, jobs, strict=True))
    sweeps = tuple(Sweep(application, user=application, chance=1.0) for application in models)
    return Workload(
        "pollux", Recipe(file.name, options, scale), sweeps, normalise(sweeps, entries, 1.0), entries, scale.gpus
    )


class _Model:
    """The measured tables of one model."""

    def __init__(self, folder: Path, name: str) -> None:
        if not folder.is_dir():
            raise NotFound(f"there are no traces of '{name}' in {folder.parent.name}.")
        self._folder, self._name = folder, name
        # (GPUs -> nodes -> local batch sizes, step and sync times): fewest nodes win
        self._tables: dict[int, tuple[int, Floats]] = {}
        found: dict[tuple[int, int], dict[str, list[tuple[float, float, float]]]] = defaultdict(
            lambda: defaultdict(list)
        )
        for table, key in (("placements.csv", "placement"), ("scalability.csv", "num_replicas")):
            names = (key, "local_bsz", "step_time", "sync_time", *(("num_nodes",) if key == "num_replicas" else ()))
            file = _existing(folder / table)
            for row in read_table(file, names):
                gpus = sum(map(int, row[0])) if key == "placement" else int(row[0])
                nodes = len(row[0]) if key == "placement" else int(row[4])
                local, step, sync = numbers(file, "local_bsz, step_time, sync_time", list(row[1:4]))
                found[gpus, nodes][row[0]].append((local, step, sync))
        for (gpus, nodes), placements in sorted(found.items()):
            if gpus not in self._tables:
                densest = placements[max(placements)]
                self._tables[gpus] = (nodes, np.array(sorted(densest)))
        curves = [self._read_curve(file) for file in sorted(folder.glob("validation-*.csv"))]
        self._highest = max((float(metric.max()) for _, metric in curves), default=1.0)

    def step_s(self, gpus: int, batch: int) -> float:
        """Seconds of one step of the whole batch on `gpus`, which need not be a measured number of them."""
        if gpus in self._tables:
            table = self._tables[gpus][1]
            local = batch / gpus
            parts = max(1, -(-local // float(table[-1, 0])))
            step, sync = (float(np.interp(local / parts, table[:, 0], table[:, c])) for c in (1, 2))
            return (parts - 1) * max(step - sync, 0.0) + step
        known = sorted(self._tables)
        below = max((n for n in known if n < gpus), default=known[0])
        above = min((n for n in known if n > gpus), default=known[-1])
        if below == above:
            return self.step_s(below, batch)
        speeds = [1.0 / self.step_s(n, batch) for n in (below, above)]
        return 1.0 / float(np.interp(gpus, [below, above], speeds))

    def curve(self, batch: int) -> tuple[Ints, Floats]:
        """(iterations, losses) of the nearest measured batch size, with the point at step 0."""
        files = {int(f.stem.partition("-")[2]): f for f in self._folder.glob("validation-*.csv")}
        if not files:
            raise NotFound(f"there is no validation-BATCH.csv of '{self._name}'.")
        iterations, metric = self._read_curve(files[min(files, key=lambda b: (abs(b - batch), b))])
        part = metric / self._highest
        losses = part if self._name in LOWER_IS_BETTER else 1.0 - part
        return np.concatenate([[0], iterations]), np.round(np.concatenate([[1.0], losses]), 9)

    def _read_curve(self, file: Path) -> tuple[Ints, Floats]:
        rows = read_table(file, ("iteration", "metric"))
        iterations = np.array(numbers(file, "iteration", [row[0] for row in rows]), dtype=np.int64)
        metric = np.array(numbers(file, "metric", [row[1] for row in rows]))
        if not len(iterations) or (np.diff(iterations) <= 0).any() or iterations[0] <= 0:
            raise InvalidInput(f"{self._name}/{file.name}: iterations must increase from above 0.")
        return iterations, metric


def _existing(file: Path) -> Path:
    if not file.is_file():
        raise NotFound(f"'{file.parent.name}/{file.name}' is not in the given folder.")
    return file
