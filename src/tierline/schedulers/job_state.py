"""What the job scheduler knows. Data and derived values only; the transitions are in `jobs.py`.

Invariants: `queued` counts the records in phase QUEUED, and just those have `eligible` set and `running` clear in the
table; `elastic` counts live jobs with max_gpus > min_gpus; a record's `row` is its row in the table and the bank, −1 once
it has ended; a timer in `timers` is one that the runtime will deliver.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from tierline.core.nouns import Job, Sweep
from tierline.core.views import Floats
from tierline.perf.forecast import ForecastBank
from tierline.perf.interference import Interference
from tierline.schedulers.job_record import JobRecord
from tierline.schedulers.job_table import JobTable
from tierline.schedulers.placement import DevicePool

FairBy = Literal["job", "user", "sweep"]


@dataclass(slots=True)
class JobTierState:
    """The fold over all events. `users` and `sweep_index` map names to the indices used in the table's columns;
    `price` is the clearing price λ per GPU type of the newest round."""

    pool: DevicePool = field(default_factory=DevicePool)
    table: JobTable = field(default_factory=JobTable)
    bank: ForecastBank = field(default_factory=ForecastBank)
    interference: Interference = field(default_factory=Interference)
    jobs: dict[str, JobRecord] = field(default_factory=dict)
    sweeps: dict[str, Sweep] = field(default_factory=dict)
    users: dict[str, int] = field(default_factory=dict)
    sweep_index: dict[str, int] = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    dependents: dict[str, list[str]] = field(default_factory=dict)
    deadlines: dict[str, int] = field(default_factory=dict)
    timers: dict[str, int] = field(default_factory=dict)
    price: dict[str, float] = field(default_factory=dict)
    round: int = 0
    queued: int = 0
    elastic: int = 0
    weights_stale: bool = False

    def live(self, job_id: str) -> JobRecord | None:
        """The record of a job that has not ended."""
        record = self.jobs.get(job_id)
        return None if record is None or record.phase.is_terminal else record

    def sweep_row(self, sweep_id: str) -> int:
        return self.sweep_index.setdefault(sweep_id, len(self.sweep_index))

    def type_speed(self, job: Job) -> Floats:
        """Speed on each type (T); 0.0 where the job may not run (type not asked for, too little memory)."""
        speeds = dict(job.type_speed)
        return np.array([speeds.get(t, 1.0) * self.pool.suits(job, t) for t in self.pool.gpu_types])

    def speed(self, record: JobRecord) -> float:
        """Work done per second on the devices held now, relative to `min_gpus` of the slowest type."""
        row, gpus = record.row, len(record.device_ids)
        if gpus == 0:
            return 0.0
        curve = self.table.speedups[row]
        gpu_type = int(self.table.ints("gpu_type")[row])
        alone = float(self.table.type_speed[row, gpu_type]) * (1.0 if curve is None else float(curve[gpus]))
        return alone * self.speed_beside(record)

    def speed_beside(self, record: JobRecord) -> float:
        """Believed speed beside those that use its devices too, 1.0 = as alone: a job slowed on one device stalls on all."""
        table, row = self.table, record.row
        if row < 0 or not table.ints("shared")[row]:
            return 1.0
        gpu_type = self.pool.gpu_types[table.ints("gpu_type")[row]]
        types = table.ints("job_type")
        others = (self.jobs[job_id].row for job_id in self.pool.partners(record.job.job_id, record.device_ids))
        speeds = (self.interference.speed(gpu_type, int(types[row]), int(types[other])) for other in others)
        return min((max(s, 0.01) for s in speeds if not np.isnan(s)), default=1.0)

    def reweigh(self, by: FairBy) -> None:
        """w = 1 per job, or the share of its user or sweep divided over that one's live jobs."""
        self.weights_stale = False
        n = len(self.table)
        if by == "job":
            return
        names = self.users if by == "user" else self.sweep_index
        owner = self.table.ints(by)[:n]
        live = self.table.bools("live")[:n]
        counts = np.bincount(owner[live], minlength=len(names))
        share = np.array([self.shares.get(name, 1.0) for name in names])
        self.table.floats("weight")[:n] = share[owner] / np.maximum(counts[owner], 1)

    def compact(self) -> None:
        """Squeeze ended rows out of table and bank once they are many."""
        if not self.table.wants_compaction():
            return
        self.bank.compact(self.table.compact())
        for row, job_id in enumerate(self.table.ids):
            self.jobs[job_id].row = row
