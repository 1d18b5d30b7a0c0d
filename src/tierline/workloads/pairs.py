"""Measured pairs of jobs on one device: `FILE?option=value&…` in the form of Gavel's simulation throughputs.

The file (stanford-futuredata/gavel, MIT): GPU type -> "('job type', scale)" -> "null" (steps per second alone), or another
such key -> [steps per second of the one, of the other] side by side. Read here: types on one GPU (scale 1), as
speeds relative to alone, clipped to 1. [0, 0] says that the two did not run together: they do not fit.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tierline.core.errors import InvalidInput, NotFound, UnknownName
from tierline.core.nouns import NS_PER_S, PairSpeed
from tierline.perf.truth import Workload
from tierline.workloads.source import generator, read_options

STAND_IN = "v100"  # whose pairs stand for a GPU type that the file does not have
Speeds = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True)
class PairOptions:
    """What a simulation does with the file. `truth`: the GPU type whose pairs are the true ones; `start`: the type whose
    pairs predictions start from, less a share `hidden` of them, drawn by the seed. After `window` seconds of a pair its
    slowdown is told with relative noise `noise`, then again each time it has lasted twice as long; 0 = never."""

    truth: str = "v100"
    start: str = "p100"
    hidden: float = 0.0
    window: float = 60.0
    noise: float = 0.05


def read_pairs(path: Path) -> dict[str, dict[tuple[str, str], float]]:
    """GPU type -> (job type, the one beside it) -> speed of the first. Raises NotFound or InvalidInput."""
    if not path.is_file():
        raise NotFound(f"--pairs needs a file with measured pairs, and there is none at '{path}'.")
    try:
        tables = json.loads(path.read_text(encoding="utf-8"))
        return {gpu_type: _one_type(table) for gpu_type, table in tables.items()}
    except (OSError, ValueError, SyntaxError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise InvalidInput(f"{path.name} is no file of measured pairs as Gavel has them ({error}).") from error


def _one_type(table: dict[str, Any]) -> dict[tuple[str, str], float]:
    single = {ast.literal_eval(key)[0]: row for key, row in table.items() if ast.literal_eval(key)[1] == 1}
    alone = {job_type: float(row["null"]) for job_type, row in single.items() if row["null"] > 0}
    speeds = {}
    for job_type, row in single.items():
        for key, both in row.items():
            beside, scale = ast.literal_eval(key) if key != "null" else ("", 0)
            if scale == 1 and job_type in alone and beside in alone:
                speeds[job_type, beside] = round(min(float(both[0]) / alone[job_type], 1.0), 9)
    return speeds


def table_of(tables: Mapping[str, Speeds], gpu_type: str) -> Speeds:
    if not tables.get(gpu_type):
        raise UnknownName("GPU type of the measured pairs", gpu_type, [name for name in tables if tables[name]])
    return tables[gpu_type]


def pair_speeds(gpu_type: str, speeds: Speeds) -> tuple[PairSpeed, ...]:
    """As an event carries them."""
    return tuple(PairSpeed(gpu_type, job_type, beside, speed) for (job_type, beside), speed in sorted(speeds.items()))


def parse(source: str) -> tuple[Path, PairOptions]:
    """`FILE?option=value&…`. Raises UnknownName or InvalidInput."""
    path, _, query = source.partition("?")
    options: PairOptions = read_options("pairs", PairOptions, query)
    if not (0.0 <= options.hidden <= 1.0 and options.window >= 0.0 and 0.0 <= options.noise <= 1.0):
        raise InvalidInput("pairs: hidden and noise must lie in 0..1, and window must be 0 or more seconds.")
    return Path(path), options


def with_pairs(workload: Workload, source: str, seed: int) -> Workload:
    """The workload with a measured type for every job that names none, drawn by the seed, and the true pair speeds."""
    path, options = parse(source)
    truth = table_of(read_pairs(path), options.truth)
    types = sorted({job_type for job_type, _ in truth})
    drawn = generator("pairs", seed).integers(len(types), size=len(workload.entries))
    entries = tuple(
        entry if entry.job.job_type else replace(entry, job=replace(entry.job, job_type=types[number]))
        for entry, number in zip(workload.entries, drawn.tolist(), strict=True)
    )
    return replace(workload, entries=entries, pair_speed=truth)


def start_of(source: str, seed: int) -> tuple[tuple[PairSpeed, ...], int, float]:
    """(what predictions start from, window in ns, noise) of a simulation."""
    path, options = parse(source)
    speeds = table_of(read_pairs(path), options.start)
    rng = generator("hidden pairs", seed)
    hidden = {pair for pair in sorted({tuple(sorted(pair)) for pair in speeds}) if rng.random() < options.hidden}
    known = {pair: speed for pair, speed in speeds.items() if tuple(sorted(pair)) not in hidden}
    return pair_speeds("", known), round(options.window * NS_PER_S), options.noise
