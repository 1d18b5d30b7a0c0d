"""The live jobs as columns, so that a round over 10,000 jobs costs a few numpy calls.

Invariant: row i of every column, of `ids` and of the forecast bank speak of the same job. Rows are in order of
submission; the row of an ended job stays, neither eligible nor running, until `compact` squeezes such rows out.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from tierline.core.nouns import Job
from tierline.core.views import Bools, Floats, Ints, JobColumns
from tierline.perf.speedup import speedup_curve

_INTS = (
    "arrival_ns", "queued_ns", "started_ns", "attained_gpu_ns", "min_gpus", "max_gpus", "gpus", "gpu_type",
    "priority", "deadline_ns", "user", "sweep", "step", "total_steps", "reports", "restarts",
)  # fmt: skip
_SHARING = ("job_type", "memory_bytes", "shared", "shared_ns")  # kept here, shown in `SharingView`
_BOOLS = ("live", "eligible", "running", "preemptible", "shareable")
_FLOATS = ("weight", "bid")


class JobTable:
    """Growable columns. `attained_gpu_ns` holds what was received up to `started_ns`; `columns` adds the rest, and takes
    off half of the time since `shared_ns` on those `shared` devices that another job uses too."""

    def __init__(self) -> None:
        self.ids: list[str] = []
        self.speedups: list[Floats | None] = []
        self._capacity = 256
        self._int = {name: np.zeros(self._capacity, np.int64) for name in (*_INTS, *_SHARING)}
        self._bool = {name: np.zeros(self._capacity, np.bool_) for name in _BOOLS}
        self._float = {name: np.zeros(self._capacity, np.float64) for name in _FLOATS}
        self._type_speed = np.zeros((self._capacity, 0), np.float64)
        self._frozen_ids: tuple[str, ...] | None = None
        self._frozen_speedups: tuple[Floats | None, ...] = ()
        self.dead = 0

    def __len__(self) -> int:
        return len(self.ids)

    def ints(self, name: str) -> Ints:
        return self._int[name]

    def bools(self, name: str) -> Bools:
        return self._bool[name]

    def floats(self, name: str) -> Floats:
        return self._float[name]

    @property
    def type_speed(self) -> Floats:
        return self._type_speed

    def append(self, job: Job, now_ns: int, user: int, sweep: int, type_speed: Floats, job_type: int = -1) -> int:
        """Add a job; returns its row."""
        row = len(self.ids)
        if row == self._capacity:
            self._grow()
        self.ids.append(job.job_id)
        self.speedups.append(speedup_curve(job.speedup, job.min_gpus, job.max_gpus))
        self._frozen_ids = None
        fresh = {
            "arrival_ns": now_ns, "queued_ns": now_ns, "min_gpus": job.min_gpus, "max_gpus": job.max_gpus,
            "gpu_type": -1, "priority": job.priority, "deadline_ns": job.deadline_ns, "user": user, "sweep": sweep,
            "step": -1, "total_steps": job.total_steps, "job_type": job_type, "memory_bytes": job.gpu_memory_bytes,
        }  # fmt: skip
        for name, column in self._int.items():
            column[row] = fresh.get(name, 0)
        for name, flags in self._bool.items():
            flags[row] = name == "live" or (name in ("preemptible", "shareable") and getattr(job, name))
        self._float["weight"][row] = 1.0
        self._float["bid"][row] = np.nan
        self._type_speed[row] = type_speed
        return row

    def end(self, row: int) -> None:
        """The job in this row is over; the row is squeezed out by a later `compact`."""
        for name in ("live", "eligible", "running"):
            self._bool[name][row] = False
        self._int["gpus"][row] = 0
        self.dead += 1

    def set_types(self, types: int, type_speed: Iterable[Floats]) -> None:
        """There are `types` GPU types now; `type_speed` (each of that length) replaces the speeds of the rows, in order."""
        self._type_speed = np.zeros((self._capacity, types), np.float64)
        for row, speeds in enumerate(type_speed):
            self._type_speed[row] = speeds

    def wants_compaction(self) -> bool:
        return self.dead > 64 and self.dead * 4 > len(self.ids)

    def compact(self) -> Ints:
        """Squeeze ended rows out; returns the old rows that were kept, in order."""
        keep = np.flatnonzero(self._bool["live"][: len(self.ids)])
        for table in (self._int, self._bool, self._float):
            for column in table.values():
                column[: len(keep)] = column[keep]
        self._type_speed[: len(keep)] = self._type_speed[keep]
        self.ids = [self.ids[row] for row in keep]
        self.speedups = [self.speedups[row] for row in keep]
        self._frozen_ids = None
        self.dead = 0
        return keep

    def columns(self, now_ns: int) -> JobColumns:
        """The columns as a view: read-only windows, valid until the next event is handled."""
        n = len(self.ids)
        if self._frozen_ids is None:
            self._frozen_ids = tuple(self.ids)
            self._frozen_speedups = tuple(self.speedups)
        running = self._bool["running"][:n]
        attained = self._int["attained_gpu_ns"][:n] + self._int["gpus"][:n] * running * (
            now_ns - self._int["started_ns"][:n]
        )
        shared = self._int["shared"][:n]
        if shared.any():
            attained -= shared * (now_ns - self._int["shared_ns"][:n]) // 2
        windows: dict[str, Any] = {name: _read_only(self._int[name][:n]) for name in _INTS if name != "attained_gpu_ns"}
        windows.update((name, _read_only(self._bool[name][:n])) for name in ("eligible", "running", "preemptible"))
        return JobColumns(
            job_id=self._frozen_ids,
            speedup=self._frozen_speedups,
            attained_gpu_ns=_read_only(attained),
            type_speed=_read_only(self._type_speed[:n]),
            weight=_read_only(self._float["weight"][:n]),
            **windows,
        )

    def dump_columns(self) -> dict[str, NDArray[np.generic]]:
        """Every column up to the last row, by name."""
        n = len(self.ids)
        columns = {**self._int, **self._bool, **self._float, "type_speed": self._type_speed}
        return {**{name: column[:n] for name, column in columns.items()}, "dead": np.array([self.dead])}

    def load_columns(self, raw: dict[str, NDArray[np.uint8]]) -> None:
        """The inverse of `dump_columns`, for the same rows; takes each column's bytes. A column that an older version
        did not have stays as `append` made it."""
        n = len(self.ids)
        for table in (self._int, self._bool, self._float, {"type_speed": self._type_speed}):
            for name, column in table.items():
                if name in raw:
                    column[:n] = raw[name].view(column.dtype).reshape(column[:n].shape)
        self.dead = int(raw["dead"].view(np.int64)[0])

    def _grow(self) -> None:
        self._capacity *= 2
        for table in (self._int, self._bool, self._float):
            for name, column in table.items():
                bigger = np.zeros(self._capacity, column.dtype)
                bigger[: len(column)] = column
                table[name] = bigger  # type: ignore[assignment]
        types = np.zeros((self._capacity, self._type_speed.shape[1]), np.float64)
        types[: len(self._type_speed)] = self._type_speed
        self._type_speed = types


_Number = TypeVar("_Number", bound=np.generic)


def _read_only(column: NDArray[_Number]) -> NDArray[_Number]:
    window = column[:]
    window.flags.writeable = False
    return window
