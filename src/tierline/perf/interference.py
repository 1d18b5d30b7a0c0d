"""How fast jobs run beside each other on one device: predicted from what is known, corrected by what is seen.

A *job type* is what jobs are alike in: the measured one that they name, else their sweep and the demands they declare. For an
ordered pair of job types on a GPU type the belief is a speed in 0..1, relative to running alone:

    belief = (W · prior + n · mean) / (W + n)

`prior`: the measured pair (`PairsMeasured`) of that type, else of any type (""), else from declared demands
`1 / max(1, Σ sm_util, Σ bw_util)`, for a device gives all it has and no more; else not known (NaN), and a pair that
nobody knows anything of is not made. `mean`: of the speeds seen (`SlowdownSeen`), n of them; the newest counts 1/n, with n
at most `MEMORY`, so that a drift is followed. W = `PRIOR_WEIGHT` of one seeing: the prior was measured elsewhere, what is
seen is the pair itself, so two seeings outvote any prior. A speed of 0.0 says that the two do not fit together.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tierline.core.nouns import Job, PairSpeed
from tierline.core.views import Floats

PRIOR_WEIGHT = 0.5
MEMORY = 8


def type_name(job: Job) -> str:
    """What the job is like, "" when nothing is known of it."""
    if job.job_type:
        return job.job_type
    if job.sm_util or job.bw_util:
        return f"{job.sweep} {job.sm_util:g}/{job.bw_util:g}".strip()
    return ""


def fits(memory_bytes: Iterable[int], device_memory_bytes: int) -> bool:
    """Whether jobs that declare so much memory fit on one device. 0 for the device = not known, then nothing is refused;
    a job that declares none is taken to need all of it."""
    asked = list(memory_bytes)
    return device_memory_bytes == 0 or (all(asked) and sum(asked) <= device_memory_bytes)


def by_demand(one: tuple[float, float], other: tuple[float, float]) -> float:
    """Speed of both from (sm_util, bw_util) of each; NaN when one of them declared neither."""
    if not any(one) or not any(other):
        return float("nan")
    return 1.0 / max(1.0, one[0] + other[0], one[1] + other[1])


class Interference:
    """What is believed about pairs of job types. Its size grows with the square of their number, not of jobs."""

    def __init__(self) -> None:
        self._index: dict[str, int] = {}
        self._demand: list[tuple[float, float]] = []
        self._measured: dict[tuple[str, str, str], float] = {}
        self._seen: dict[tuple[str, str, str], tuple[int, float]] = {}  # (GPU type, job type, beside) -> (n, mean)
        self._cache: tuple[tuple[str, ...], Floats] | None = None

    def index(self, job: Job) -> int:
        """Index of the job's type, made known if it is new; −1 when nothing is known of it."""
        name = type_name(job)
        if not name:
            return -1
        if name not in self._index:
            self._index[name] = len(self._index)
            self._demand.append((job.sm_util, job.bw_util))
            self._widen()
        return self._index[name]

    def measure(self, pairs: Iterable[PairSpeed]) -> None:
        """Take up measured pairs as priors; what was seen since stays."""
        self._measured.update(((p.gpu_type, p.job_type, p.beside), p.speed) for p in pairs)
        self._cache = None

    def knows(self, pairs: Iterable[PairSpeed]) -> bool:
        return all(self._measured.get((p.gpu_type, p.job_type, p.beside)) == p.speed for p in pairs)

    def see(self, gpu_type: str, job_type: int, beside: int, speed: float) -> None:
        """One window of a job of `job_type` beside one of `beside`; speeds outside 0..1 are clipped."""
        names = list(self._index)
        key = (gpu_type, names[job_type], names[beside])
        count, mean = self._seen.get(key, (0, 0.0))
        count = min(count + 1, MEMORY)
        self._seen[key] = (count, mean + (min(max(speed, 0.0), 1.0) - mean) / count)
        if self._cache is not None and gpu_type in self._cache[0]:
            self._cache[1][self._cache[0].index(gpu_type), job_type, beside] = self._belief(gpu_type, *key[1:])

    def speed(self, gpu_type: str, job_type: int, beside: int) -> float:
        """Believed speed of `job_type` beside `beside`, NaN = not known."""
        if job_type < 0 or beside < 0:
            return float("nan")
        names = list(self._index)
        return self._belief(gpu_type, names[job_type], names[beside])

    def speeds(self, gpu_types: Iterable[str]) -> Floats:
        """All beliefs (T × K × K), read-only: [t, a, b] of job type a beside b on GPU type t, NaN = not known."""
        types = tuple(gpu_types)
        if self._cache is None or self._cache[0] != types:
            names = list(self._index)
            table = [[[self._belief(t, a, b) for b in names] for a in names] for t in types]
            self._cache = types, np.array(table, dtype=np.float64).reshape(len(types), len(names), len(names))
        window = self._cache[1][:]
        window.flags.writeable = False
        return window

    def _widen(self) -> None:
        """A job type came: its row and column of the table."""
        if self._cache is None:
            return
        names = list(self._index)
        types, old = self._cache
        table = np.empty((len(types), len(names), len(names)))
        table[:, :-1, :-1] = old
        for t, gpu_type in enumerate(types):
            table[t, -1] = [self._belief(gpu_type, names[-1], other) for other in names]
            table[t, :, -1] = [self._belief(gpu_type, other, names[-1]) for other in names]
        self._cache = types, table

    def _belief(self, gpu_type: str, job_type: str, beside: str) -> float:
        prior = self._measured.get((gpu_type, job_type, beside), self._measured.get(("", job_type, beside)))
        if prior is None:
            prior = by_demand(self._demand[self._index[job_type]], self._demand[self._index[beside]])
        count, mean = self._seen.get((gpu_type, job_type, beside), (0, 0.0))
        if not count:
            return prior
        return mean if np.isnan(prior) else (PRIOR_WEIGHT * prior + count * mean) / (PRIOR_WEIGHT + count)

    def dump(self) -> dict[str, Any]:
        """The state as JSON-able types."""
        return {
            "job_types": [[name, *self._demand[index]] for name, index in self._index.items()],
            "measured": [[*key, speed] for key, speed in self._measured.items()],
            "seen": [[*key, count, mean] for key, (count, mean) in self._seen.items()],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Into a fresh instance."""
        for name, sm_util, bw_util in state["job_types"]:
            self._index[name] = len(self._index)
            self._demand.append((sm_util, bw_util))
        self._measured.update(((t, a, b), speed) for t, a, b, speed in state["measured"])
        self._seen.update(((t, a, b), (count, mean)) for t, a, b, count, mean in state["seen"])
