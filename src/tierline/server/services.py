"""What the API needs of a running daemon, and nothing more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tierline.core.contracts import Clock
from tierline.core.nouns import Job, Sweep
from tierline.core.status import ClusterStatus, JobStatus
from tierline.runtime.driver import Driver
from tierline.runtime.metrics import Measures
from tierline.runtime.table import EventTable


class Questions(Protocol):
    """What may be asked of the scheduler, always through `Driver.query`."""

    def job(self, job_id: str) -> Job: ...

    def status(self, job_id: str, now_ns: int) -> JobStatus: ...

    def statuses(self, now_ns: int) -> list[JobStatus]: ...

    def cluster(self, now_ns: int) -> ClusterStatus: ...

    def sweeps(self) -> list[Sweep]: ...

    def shares(self) -> dict[str, float]: ...


@dataclass(frozen=True, slots=True)
class Services:
    """`log_path` gives the newer half of a job's log; `policies` name -> one line; `started_ns` of this daemon."""

    driver: Driver
    scheduler: Questions
    clock: Clock
    table: EventTable
    measures: Measures
    log_path: Callable[[str], Path]
    policies: Mapping[str, str]
    policy: str
    state: Path
    version: str
    pid: int
    started_ns: int
