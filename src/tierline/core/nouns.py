"""What the job tier schedules: jobs, sweeps, nodes, devices, reports. Frozen facts, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

NS_PER_S = 1_000_000_000

JobKind = Literal["exploratory", "batch", "service"]
ProgressKind = Literal["report", "regex", "jsonl", "tensorboard"]
Direction = Literal["min", "max"]
Outcome = Literal["completed", "failed", "preempted", "stopped", "lost"]


class Phase(IntEnum):
    """Where a job is in its life. Legal moves are listed in `schedulers/jobs.py`."""

    WAITING = 0  # its dependencies have not ended well yet
    HELD = 1  # its user holds it back
    QUEUED = 2  # may start
    STARTING = 3  # devices are assigned, no word from the backend yet
    RUNNING = 4
    RELEASING = 5  # asked to checkpoint and leave, still on its devices
    COMPLETED = 6
    FAILED = 7
    STOPPED = 8

    @property
    def is_terminal(self) -> bool:
        return self >= Phase.COMPLETED

    @property
    def holds_devices(self) -> bool:
        return Phase.STARTING <= self <= Phase.RELEASING


@dataclass(frozen=True, slots=True)
class Metric:
    """The number by which a job's progress is judged. A `max` metric is negated at the edge into a loss."""

    name: str = "loss"
    direction: Direction = "min"


@dataclass(frozen=True, slots=True)
class Progress:
    """How a job's progress is read: `tierline.report`, or its stdout, or TensorBoard event files.

    `pattern` is a regular expression with groups `step` and `loss` for `regex`, the key of the loss for `jsonl`
    (default: the metric's name), and `folder:tag` for `tensorboard`.
    """

    kind: ProgressKind = "report"
    pattern: str = ""


@dataclass(frozen=True, slots=True)
class Job:
    """One job as its user declared it; nothing in here changes after it was accepted.

    `job_id` is unique in a cluster. `sweep` names the jobs whose losses compare ("" = this job alone).
    `speedup` holds measured points (gpus, speed relative to `min_gpus`); `type_speed` measured speeds per GPU type
    relative to the slowest (absent = 1.0). `params` are the hyperparameters of a trial.

    For sharing a device with another job: `job_type` names a measured type of job ("" = none), `sm_util` and `bw_util`
    are the shares of a device's compute and memory bandwidth that the job uses when alone (0.0 = not known), and
    `shareable` False keeps its devices to itself. All four matter only where sharing was switched on.
    """

    job_id: str
    user: str = "local"
    argv: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    cwd: str = ""
    sweep: str = ""
    kind: JobKind = "exploratory"
    min_gpus: int = 1
    max_gpus: int = 1
    gpu_types: tuple[str, ...] = ()
    gpu_memory_bytes: int = 0
    metric: Metric = Metric()
    progress: Progress = Progress()
    total_steps: int = 0
    deadline_ns: int = 0
    priority: int = 0
    after: tuple[str, ...] = ()
    held: bool = False
    preemptible: bool = True
    grace_ns: int = 30 * NS_PER_S
    max_restarts: int = 3
    speedup: tuple[tuple[int, float], ...] = ()
    type_speed: tuple[tuple[str, float], ...] = ()
    params: tuple[tuple[str, float | int | str | bool], ...] = ()
    job_type: str = ""
    sm_util: float = 0.0
    bw_util: float = 0.0
    shareable: bool = True


@dataclass(frozen=True, slots=True)
class Sweep:
    """Jobs whose losses compare. `chance` is the loss of a model that has learnt nothing, `target` one that is as
    good as can be; None = not declared: then the median of the first reports is the
    chance level, and the best loss seen stands for the target (docs: concepts/utility)."""

    sweep_id: str
    user: str = "local"
    metric: Metric = Metric()
    chance: float | None = None
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """One schedulable device: a GPU, or a declared CPU slot (`gpu_type` "cpu")."""

    device_id: str
    gpu_type: str = "gpu"
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Node:
    """A machine that offers devices; `name` is unique in a cluster."""

    name: str
    devices: tuple[Device, ...]


@dataclass(frozen=True, slots=True)
class PairSpeed:
    """A measured pair: a job of type `job_type` runs at `speed` (0..1, of its speed alone) on a device that one of type
    `beside` uses too. 0.0 = the two do not fit together. `gpu_type` "" = any type without a measurement of its own."""

    gpu_type: str
    job_type: str
    beside: str
    speed: float


@dataclass(frozen=True, slots=True)
class Report:
    """One progress report of one attempt of a job. `loss` is lower-is-better; None when it was NaN or infinite.

    `offset` is the position in the job's report stream just behind this report, so that reading resumes there
    after a restart of the daemon and no report is taken twice.
    """

    job_id: str
    step: int
    loss: float | None
    time_ns: int
    attempt: int = 1
    offset: int = 0
