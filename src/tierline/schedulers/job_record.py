"""One job's changing state, and how it looks from outside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from tierline.core.errors import NotFound
from tierline.core.nouns import Job, Phase
from tierline.core.status import AttemptStatus, JobStatus

Leaving = Literal["", "preempt", "hold", "stop"]


@dataclass(slots=True)
class JobRecord:
    """State of one job. `row` is its row in the job table, −1 once it has ended. `leaving` says why a RELEASING job
    was asked to go; `reason` is the newest decision about the job as a sentence."""

    job: Job
    submitted_ns: int
    row: int
    phase: Phase
    waits_for: int = 0
    attempt: int = 0
    device_ids: tuple[str, ...] = ()
    resume: bool = False
    leaving: Leaving = ""
    started_ns: int = 0
    ended_ns: int = 0
    attained_gpu_ns: int = 0
    losses: int = 0  # attempts lost through no fault of the job
    reports: int = 0
    step: int = -1
    loss: float | None = None
    best_loss: float | None = None
    utility: float | None = None  # final, once the job has ended
    report_offset: int = 0
    shares_with: tuple[str, ...] = ()  # as its newest StartJob said; who is there now, the pool knows
    reason: str = "waits for its first round"
    density: float | None = None
    price: float | None = None

    def status(self, now_ns: int, utility: float | None, reason: str) -> JobStatus:
        """What a person is shown; `utility` as of now, `reason` why it waits or the newest decision."""
        job = self.job
        running = self.phase.holds_devices
        attained = self.attained_gpu_ns + (len(self.device_ids) * (now_ns - self.started_ns) if running else 0)
        return JobStatus(
            job_id=job.job_id,
            user=job.user,
            sweep=job.sweep,
            kind=job.kind,
            phase=self.phase.name.lower(),
            priority=job.priority,
            argv=job.argv,
            gpus=len(self.device_ids),
            device_ids=self.device_ids,
            attempt=self.attempt,
            restarts=max(self.attempt - 1, 0),
            submitted_ns=self.submitted_ns,
            started_ns=self.started_ns,
            ended_ns=self.ended_ns,
            attained_gpu_s=attained / 1e9,
            reports=self.reports,
            step=self.step if self.step >= 0 else None,
            total_steps=job.total_steps,
            loss=self.loss,
            best_loss=self.best_loss,
            utility=utility if self.utility is None else self.utility,
            density=self.density,
            price=self.price,
            reason=reason,
        )

    def attempt_status(self) -> AttemptStatus:
        return AttemptStatus(
            job_id=self.job.job_id,
            attempt=self.attempt,
            device_ids=self.device_ids,
            resume=self.resume,
            leaving=self.leaving != "",
            stop_for_good=self.leaving == "stop",
            report_offset=self.report_offset,
            shares_with=self.shares_with,
        )


def find_record(job_id: str, known: Mapping[str, JobRecord]) -> JobRecord:
    """The record of a job that was ever accepted; raises `NotFound`."""
    record = known.get(job_id)
    if record is None:
        raise NotFound(f"there is no job '{job_id}'; `tierline ps --all` lists them.")
    return record
