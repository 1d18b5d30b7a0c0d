"""What happened, in the past tense. Events are the only input of a scheduler; the event table holds them all."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.nouns import Job, Node, Outcome, PairSpeed, Report, Sweep
from tierline.core.serving_events import ServingEvent


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node offers its devices (again): the first event of every run."""

    node: Node


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node is gone with everything on it. Its jobs start again from their checkpoints elsewhere."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True)
class DevicesBlocked:
    """Processes that are not ours use these devices: nothing new is placed there. Replaces the earlier set."""

    node: str
    device_ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class SharesSet:
    """An administrator set the shares of users (or of sweeps, under `--fair-by sweep`)."""

    shares: tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class SweepDeclared:
    """A sweep exists from now on; its settings do not change."""

    sweep: Sweep


@dataclass(frozen=True, slots=True)
class JobSubmitted:
    """A user's job was accepted."""

    job: Job


@dataclass(frozen=True, slots=True)
class JobHeld:
    """The user holds a job back; if it runs, it checkpoints and leaves its devices."""

    job_id: str
    by: str


@dataclass(frozen=True, slots=True)
class JobReleased:
    """The user lets a held job run again."""

    job_id: str
    by: str


@dataclass(frozen=True, slots=True)
class StopRequested:
    """The user ends a job for good; if it runs, it may checkpoint first."""

    job_id: str
    by: str
    reason: str = "stopped by its user"


@dataclass(frozen=True, slots=True)
class JobStarted:
    """The backend confirms that this attempt runs."""

    job_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class ProgressReported:
    """A batch of reports, oldest first."""

    reports: tuple[Report, ...]


@dataclass(frozen=True, slots=True)
class JobExited:
    """An attempt has ended and its devices are free.

    `preempted` and `stopped` say that we asked for it; `lost` that the machinery under the job failed (its node, its
    supervisor), which is no fault of the job's. `reason` is a sentence for the user.
    """

    job_id: str
    attempt: int
    outcome: Outcome
    reason: str
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class PairsMeasured:
    """How fast types of jobs run beside each other, as measured before this run: what predictions start from."""

    pairs: tuple[PairSpeed, ...]


@dataclass(frozen=True, slots=True)
class SlowdownSeen:
    """An attempt that shares devices with `with_jobs` ran at `speed` (0..1, of its speed alone) over the last
    `window_ns`; `launches` it made in that time (0 = not counted)."""

    job_id: str
    attempt: int
    with_jobs: tuple[str, ...]
    speed: float
    window_ns: int
    launches: int = 0


@dataclass(frozen=True, slots=True)
class TimerFired:
    """A timer that the scheduler had set. `name` is `quantum` or `fill`."""

    name: str


JobEvent = (
    NodeJoined
    | NodeLost
    | DevicesBlocked
    | SharesSet
    | SweepDeclared
    | JobSubmitted
    | JobHeld
    | JobReleased
    | StopRequested
    | JobStarted
    | ProgressReported
    | JobExited
    | PairsMeasured
    | SlowdownSeen
    | TimerFired
)
Event = JobEvent | ServingEvent
