"""The shapes of the HTTP API, from which its OpenAPI document is made. Fields mean what they mean in `core`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tierline.core.nouns import Direction, JobKind, ProgressKind

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_JOBS_PER_REQUEST = 10_000
INT63 = 2**63 - 1

Identifier = Annotated[str, Field(pattern=ID_PATTERN)]
OptionalIdentifier = Annotated[str, Field(pattern=r"^([A-Za-z0-9][A-Za-z0-9._-]{0,63})?$")]
Text = Annotated[str, Field(max_length=131_072)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Speed = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=INT63)]
Param = bool | Annotated[int, Field(ge=-INT63, le=INT63)] | Finite | Text
Lax = ConfigDict(extra="ignore")
Strict = ConfigDict(extra="forbid", strict=False)


class JobRequest(BaseModel):
    """One job to submit. Times are seconds; `deadline_s` is Unix time, 0 = none; `cwd` is absolute; `job_id` "" = the
    daemon names it; `user` "" = who asks (only an administrator may name another)."""

    model_config = Strict

    argv: list[Text] = Field(min_length=1, max_length=100_000)
    cwd: Text
    job_id: OptionalIdentifier = ""
    user: OptionalIdentifier = ""
    env: dict[str, Text] = {}
    sweep: OptionalIdentifier = ""
    kind: JobKind = "exploratory"
    min_gpus: int = Field(1, ge=1, le=1_000_000)
    max_gpus: int = Field(1, ge=1, le=1_000_000)
    gpu_types: list[Text] = []
    gpu_memory_bytes: Count = 0
    metric: Text = "loss"
    direction: Direction = "min"
    progress: ProgressKind = "report"
    pattern: Text = ""
    total_steps: Count = 0
    deadline_s: float = Field(0.0, ge=0, le=9e9)
    priority: int = Field(0, ge=-100, le=100)
    after: list[Identifier] = []
    held: bool = False
    preemptible: bool = True
    grace_s: float = Field(30.0, ge=0, le=86_400)
    max_restarts: int = Field(3, ge=0, le=1_000_000)
    speedup: list[tuple[Annotated[int, Field(ge=1, le=1_000_000)], Speed]] = []
    type_speed: dict[str, Speed] = {}
    params: dict[str, Param] = {}
    job_type: Annotated[str, Field(max_length=200)] = ""
    sm_util: float = Field(0.0, ge=0, le=1)
    bw_util: float = Field(0.0, ge=0, le=1)
    shareable: bool = True


class SweepRequest(BaseModel):
    """A sweep to declare. `chance` and `target` are values of the metric itself (accuracy 0.1 under `max`)."""

    model_config = Strict

    sweep_id: Identifier
    metric: Text = "loss"
    direction: Direction = "min"
    chance: Finite | None = None
    target: Finite | None = None


class Submission(BaseModel):
    """All of the jobs are accepted, or none."""

    model_config = Strict

    jobs: list[JobRequest] = Field(max_length=MAX_JOBS_PER_REQUEST)
    sweep: SweepRequest | None = None


class Submitted(BaseModel):
    job_ids: list[str]


class StopBody(BaseModel):
    model_config = Strict

    reason: str = Field("", max_length=1_000)


class Shares(BaseModel):
    """Share per user (per sweep under `--fair-by sweep`); who is not named has 1."""

    model_config = Strict

    shares: dict[OptionalIdentifier, Speed]


class JobStatus(BaseModel):
    model_config = Lax

    job_id: str
    user: str
    sweep: str
    kind: JobKind
    phase: Literal["waiting", "held", "queued", "starting", "running", "releasing", "completed", "failed", "stopped"]
    priority: int
    argv: list[str]
    gpus: int
    device_ids: list[str]
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
    shares_with: list[str] = []
    speed: float = 1.0


class Jobs(BaseModel):
    jobs: list[JobStatus]


class Decision(BaseModel):
    seq: int
    time_ns: int
    action: str
    reason: str
    density: float | None
    price: float | None
    devices: list[str]
    attempt: int | None


class Why(BaseModel):
    """Decisions about a job, newest last; `job.reason` is why it waits, or the newest of them."""

    job: JobStatus
    decisions: list[Decision]


class ReportRow(BaseModel):
    step: int
    loss: float | None
    time_ns: int
    attempt: int


class Reports(BaseModel):
    reports: list[ReportRow]


class SweepInfo(BaseModel):
    """A sweep; `chance`, `target` and `best_loss` are losses (lower is better), `jobs` counts per phase."""

    sweep_id: str
    user: str
    metric: str
    direction: Direction
    chance: float | None
    target: float | None
    jobs: dict[str, int]
    best_loss: float | None
    best_job: str


class Sweeps(BaseModel):
    sweeps: list[SweepInfo]


class DeviceStatus(BaseModel):
    device_id: str
    node: str
    gpu_type: str
    memory_bytes: int
    job_id: str
    blocked: str
    guest: str = ""


class Cluster(BaseModel):
    now_ns: int
    policy: str
    quantum_s: float
    devices: list[DeviceStatus]
    price: list[tuple[str, float]]
    live_jobs: int
    queued_jobs: int
    running_jobs: int


class EventRow(BaseModel):
    seq: int
    time_ns: int
    kind: str
    event: dict[str, Any]
    actions: list[dict[str, Any]]


class Events(BaseModel):
    events: list[EventRow]


class PolicyInfo(BaseModel):
    name: str
    summary: str


class Policies(BaseModel):
    policies: list[PolicyInfo]


class Health(BaseModel):
    version: str
    pid: int
    policy: str
    state: str
    user: str
    admin: bool
    started_ns: int
    events: int


class ErrorBody(BaseModel):
    type: str
    message: str


class ErrorAnswer(BaseModel):
    error: ErrorBody
