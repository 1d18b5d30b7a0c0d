"""What a person or a script is shown of the state. Made by the scheduler, printed by the CLI, served over HTTP."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JobStatus:
    """One job now. Times are ns on the run's clock, 0 = not yet; `utility` and `density` None before any forecast.

    `phase` is the lower-case name of `Phase`. `reason` is the newest decision about the job or why it waits.
    `restarts` counts attempts after the first. `loss` is the newest finite loss, `best_loss` the lowest so far.
    `shares_with`: jobs that use devices of this one too; `speed`: what it is expected to run at beside them, 1.0 = as
    alone. A shared device is charged to each at half in `attained_gpu_s`.
    """

    job_id: str
    user: str
    sweep: str
    kind: str
    phase: str
    priority: int
    argv: tuple[str, ...]
    gpus: int
    device_ids: tuple[str, ...]
    attempt: int
    restarts: int
    submitted_ns: int
    started_ns: int
    ended_ns: int
    attained_gpu_s: float
    reports: int
    step: int | None
    total_steps: int
    loss: float | None
    best_loss: float | None
    utility: float | None
    density: float | None
    price: float | None
    reason: str
    shares_with: tuple[str, ...] = ()
    speed: float = 1.0


@dataclass(frozen=True, slots=True)
class DeviceStatus:
    """One device now; `job_id` "" when free, `guest` a second job on it ("" = none), `blocked` the reason while
    processes of others use it."""

    device_id: str
    node: str
    gpu_type: str
    memory_bytes: int
    job_id: str
    blocked: str
    guest: str = ""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The cluster now. `price` is the clearing price λ per GPU type, utility per GPU-second, of the newest round."""

    now_ns: int
    policy: str
    quantum_s: float
    devices: tuple[DeviceStatus, ...]
    price: tuple[tuple[str, float], ...]
    live_jobs: int
    queued_jobs: int
    running_jobs: int


@dataclass(frozen=True, slots=True)
class AttemptStatus:
    """An attempt that the scheduler believes to exist; a backend recovers from these after a restart."""

    job_id: str
    attempt: int
    device_ids: tuple[str, ...]
    resume: bool
    leaving: bool  # asked to leave (preempted or stopped); `stop_for_good` says which
    stop_for_good: bool
    report_offset: int
    shares_with: tuple[str, ...] = ()  # as its StartJob said
