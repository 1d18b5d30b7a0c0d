"""`name:PATH?key=value&key=value` -> a Workload. The one registry and the one parser of workload sources."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qsl

import numpy as np

from tierline.core.errors import InvalidInput, NotFound, UnknownName
from tierline.perf.truth import Workload

WORKLOADS: dict[str, str] = {
    "taskset": "tierline.workloads.taskset:build",
    "exploratory": "tierline.workloads.exploratory:build",
    "philly": "tierline.workloads.philly:build",
    "pollux": "tierline.workloads.pollux:build",
    "alibaba": "tierline.workloads.alibaba:build",
}
"""Name -> "module:function"; the function takes (path, options, scale) and its module names its `Options`."""

NEEDS_PATH = {"taskset": "folder", "philly": "file", "pollux": "folder", "alibaba": "file"}


@dataclass(frozen=True, slots=True)
class Scale:
    """What the command line says about every workload. `jobs` 0 = all there are (synthetic: 200). `load` 1.0 = work
    equal to what `gpus` devices can do between the start and the last arrival; 0.0 = the trace's own arrival times."""

    jobs: int = 0
    gpus: int = 16
    load: float = 1.0
    seed: int = 0


def load(source: str, scale: Scale) -> Workload:
    """Build the workload that `source` names, e.g. `taskset:DIR?stop_share=0.3`.

    Raises UnknownName, NotFound or InvalidInput with one sentence. Same source and scale, same workload.
    """
    head, _, query = source.partition("?")
    name, _, path = head.partition(":")
    if name not in WORKLOADS:
        raise UnknownName("workload", name, WORKLOADS)
    if scale.jobs < 0 or scale.gpus < 1 or not 0.0 <= scale.load < 1e6:
        raise InvalidInput(
            f"--jobs {scale.jobs}, --gpus {scale.gpus} and --load {scale.load:g} must be at least 0, 1 and 0."
        )
    kind = NEEDS_PATH.get(name)
    if kind is None and path:
        raise InvalidInput(f"workload '{name}' is synthetic and takes no path, but got '{path}'.")
    if kind is not None:
        where = Path(path)
        if not path or not (where.is_dir() if kind == "folder" else where.is_file()):
            raise NotFound(f"workload '{name}' needs a {kind}: '{name}:PATH', and there is none at '{path}'.")
    module_name, _, function = WORKLOADS[name].partition(":")
    module = importlib.import_module(module_name)
    options = read_options(name, module.Options, query)
    build = cast("Callable[[str, object, Scale], Workload]", getattr(module, function))
    workload = build(path, options, scale)
    if not workload.entries:
        raise InvalidInput(f"workload '{source}' holds no jobs.")
    return workload


def read_options(name: str, kind: Any, query: str) -> Any:
    """`key=value&…` -> `kind`, values in the type of its defaults. Raises UnknownName or InvalidInput."""
    known = {item.name: item for item in fields(kind)}
    given: dict[str, object] = {}
    for key, text in parse_qsl(query, keep_blank_values=True):
        if key not in known:
            raise UnknownName(f"option of workload '{name}'", key, known)
        default: Any = known[key].default
        try:
            given[key] = type(default)(text)
        except ValueError:
            raise InvalidInput(
                f"option '{key}' of workload '{name}' takes {type(default).__name__}, but got '{text}'."
            ) from None
    return kind(**given)


def generator(name: str, seed: int) -> np.random.Generator:
    """The only source of randomness of a workload: PCG64 of (seed, name)."""
    return np.random.Generator(np.random.PCG64([seed, *name.encode()]))


def poisson_arrivals_ns(rng: np.random.Generator, jobs: int, work_gpu_s: float, scale: Scale) -> list[int]:
    """Exponential gaps, scaled so that the last arrival is at work / (load · gpus). Units: GPU-seconds in, ns out."""
    if scale.load <= 0.0:
        raise InvalidInput("a load of 0 needs a trace with arrival times of its own; give --load above 0.")
    times = np.cumsum(rng.exponential(size=jobs))
    last_s = work_gpu_s / (scale.load * scale.gpus)
    # to the microsecond, so that the last bit of a processor's log() does not change the workload's hash
    return [int(t) * 1000 for t in np.rint(times * (last_s / times[-1]) * 1e6)]


def rescaled_ns(times_s: list[float], work_gpu_s: float, scale: Scale) -> list[int]:
    """A trace's own arrival times from 0, stretched to the asked load (0.0 = as they are). Seconds in, ns out."""
    span = times_s[-1] - times_s[0]
    factor = 1.0
    if scale.load > 0.0 and span > 0.0:
        factor = work_gpu_s / (scale.load * scale.gpus) / span
    return [round((t - times_s[0]) * factor * 1e6) * 1000 for t in times_s]
