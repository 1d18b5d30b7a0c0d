"""A typed client of the daemon, over its Unix socket or over TCP with a token.

>>> with connect() as client:                                       # doctest: +SKIP
...     ids = client.submit([JobRequest(argv=("python", "train.py"), cwd="/home/me/exp")])
...     client.job(ids[0]).phase
'queued'

Where the daemon is: `TIERLINE_URL` and `TIERLINE_TOKEN` when set (TCP), else the socket in the state folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import httpx
import msgspec

from tierline.cli.unix_http import UnixTransport
from tierline.config import StatePaths, state_dir
from tierline.core.errors import DaemonUnavailable, InvalidInput, NotFound, Refused, TierlineError
from tierline.core.nouns import Direction, JobKind, ProgressKind
from tierline.core.status import ClusterStatus, JobStatus

T = TypeVar("T")
Param = float | int | str | bool


@dataclass(frozen=True, slots=True)
class JobRequest:
    """One job to submit; the fields of `core.nouns.Job` with seconds for nanoseconds. `job_id` "" = the daemon names
    it. `cwd` is absolute. `deadline_s` is seconds of Unix time, 0 = none. `user` "" = who asks."""

    argv: tuple[str, ...]
    cwd: str
    job_id: str = ""
    user: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    sweep: str = ""
    kind: JobKind = "exploratory"
    min_gpus: int = 1
    max_gpus: int = 1
    gpu_types: tuple[str, ...] = ()
    gpu_memory_bytes: int = 0
    metric: str = "loss"
    direction: Direction = "min"
    progress: ProgressKind = "report"
    pattern: str = ""
    total_steps: int = 0
    deadline_s: float = 0.0
    priority: int = 0
    after: tuple[str, ...] = ()
    held: bool = False
    preemptible: bool = True
    grace_s: float = 30.0
    max_restarts: int = 3
    speedup: tuple[tuple[int, float], ...] = ()
    type_speed: Mapping[str, float] = field(default_factory=dict)
    params: Mapping[str, Param] = field(default_factory=dict)
    job_type: str = ""
    sm_util: float = 0.0
    bw_util: float = 0.0
    shareable: bool = True


@dataclass(frozen=True, slots=True)
class SweepRequest:
    """A sweep to declare together with its first jobs. `chance` and `target` are values of the metric as the user
    knows it (accuracy 0.1 under `max`); the daemon turns them into losses. None = not declared."""

    sweep_id: str
    metric: str = "loss"
    direction: Direction = "min"
    chance: float | None = None
    target: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """One entry of `why`: an action about the job, or a word of its user. `devices` those given, () otherwise."""

    seq: int
    time_ns: int
    action: str
    reason: str
    density: float | None
    price: float | None
    devices: tuple[str, ...]
    attempt: int | None


@dataclass(frozen=True, slots=True)
class Why:
    """The decisions about a job, newest last, and how it stands now (`job.reason`: why it waits)."""

    job: JobStatus
    decisions: tuple[Decision, ...]


@dataclass(frozen=True, slots=True)
class ReportRow:
    step: int
    loss: float | None
    time_ns: int
    attempt: int


@dataclass(frozen=True, slots=True)
class LogChunk:
    """Bytes of a job's output; ask again from `next_offset`, which is a mark rather than a count. `gap`: output
    between the mark and `data` was rotated away before it was asked for. `ended`: the job is over and nothing
    follows."""

    data: bytes
    next_offset: int
    gap: bool
    ended: bool


@dataclass(frozen=True, slots=True)
class SweepInfo:
    """A sweep with the number of its jobs per phase name and its best loss so far."""

    sweep_id: str
    user: str
    metric: str
    direction: str
    chance: float | None
    target: float | None
    jobs: Mapping[str, int]
    best_loss: float | None
    best_job: str


@dataclass(frozen=True, slots=True)
class EventRow:
    """One entry of the event table: `event` and `actions` as plain data, each action with its `type`."""

    seq: int
    time_ns: int
    kind: str
    event: Mapping[str, Any]
    actions: tuple[Mapping[str, Any], ...]


@dataclass(frozen=True, slots=True)
class PolicyInfo:
    name: str
    summary: str


@dataclass(frozen=True, slots=True)
class Health:
    """The daemon itself. `state` is its folder, `events` the number of recorded events."""

    version: str
    pid: int
    policy: str
    state: str
    user: str
    admin: bool
    started_ns: int
    events: int


class Client:
    """One connection; not for use by several threads at once.

    Every method raises `DaemonUnavailable` when nothing answers, and `InvalidInput`, `NotFound` or `Refused` with the
    daemon's sentence when it declines.
    """

    def __init__(self, http: httpx.Client, where: str) -> None:
        self._http = http
        self._where = where

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def submit(self, jobs: Sequence[JobRequest], sweep: SweepRequest | None = None) -> list[str]:
        """Submit all jobs or none; returns their ids in order. On return they are durable."""
        body = {"jobs": msgspec.to_builtins(list(jobs)), "sweep": msgspec.to_builtins(sweep)}
        return self._ask("POST", "/v1/jobs", dict[str, list[str]], json=body)["job_ids"]

    def jobs(self, *, all: bool = False, user: str = "", sweep: str = "") -> list[JobStatus]:  # noqa: A002
        """The live jobs in order of submission; with `all` those that have ended too."""
        params = {"all": str(all).lower(), "user": user, "sweep": sweep}
        return self._ask("GET", "/v1/jobs", dict[str, list[JobStatus]], params=params)["jobs"]

    def job(self, job_id: str) -> JobStatus:
        return self._ask("GET", f"/v1/jobs/{_segment(job_id)}", JobStatus)

    def why(self, job_id: str) -> Why:
        return self._ask("GET", f"/v1/jobs/{_segment(job_id)}/why", Why)

    def reports(self, job_id: str) -> list[ReportRow]:
        """Every report of the job, oldest first."""
        return self._ask("GET", f"/v1/jobs/{_segment(job_id)}/reports", dict[str, list[ReportRow]])["reports"]

    def logs(self, job_id: str, offset: int = 0, limit: int = 1 << 20) -> LogChunk:
        """Output from `offset`: a `next_offset`, or bytes from the oldest output kept, or if negative from the end."""
        params = {"offset": str(offset), "limit": str(limit)}
        answer = self._send("GET", f"/v1/jobs/{_segment(job_id)}/logs", params=params)
        head = answer.headers
        return LogChunk(
            data=answer.content,
            next_offset=int(head["x-tierline-next-offset"]),
            gap=head["x-tierline-gap"] == "true",
            ended=head["x-tierline-ended"] == "true",
        )

    def stop(self, job_id: str, reason: str = "") -> JobStatus:
        return self._ask("POST", f"/v1/jobs/{_segment(job_id)}/stop", JobStatus, json={"reason": reason})

    def hold(self, job_id: str) -> JobStatus:
        return self._ask("POST", f"/v1/jobs/{_segment(job_id)}/hold", JobStatus)

    def release(self, job_id: str) -> JobStatus:
        return self._ask("POST", f"/v1/jobs/{_segment(job_id)}/release", JobStatus)

    def sweeps(self) -> list[SweepInfo]:
        return self._ask("GET", "/v1/sweeps", dict[str, list[SweepInfo]])["sweeps"]

    def shares(self) -> dict[str, float]:
        return self._ask("GET", "/v1/shares", dict[str, dict[str, float]])["shares"]

    def set_shares(self, shares: Mapping[str, float]) -> dict[str, float]:
        """Set the shares of the users named and leave all others as they are; returns all of them. For administrators
        alone."""
        return self._ask("PUT", "/v1/shares", dict[str, dict[str, float]], json={"shares": dict(shares)})["shares"]

    def cluster(self) -> ClusterStatus:
        return self._ask("GET", "/v1/cluster", ClusterStatus)

    def events(self, after: int = 0, limit: int = 1000) -> list[EventRow]:
        """Events with `seq` above `after`, oldest first; for administrators alone."""
        params = {"after": str(after), "limit": str(limit)}
        return self._ask("GET", "/v1/events", dict[str, list[EventRow]], params=params)["events"]

    def policies(self) -> list[PolicyInfo]:
        return self._ask("GET", "/v1/policies", dict[str, list[PolicyInfo]])["policies"]

    def health(self) -> Health:
        return self._ask("GET", "/health", Health)

    def metrics(self) -> str:
        """The daemon's measures in Prometheus' text format."""
        return self._send("GET", "/metrics").text

    def follow(self, job_id: str, offset: int = 0, limit: int = 1 << 20) -> Iterator[LogChunk]:
        """Chunks of output from `offset` until the job has ended. After an empty one wait a little."""
        while True:
            chunk = self.logs(job_id, offset, limit)
            yield chunk
            if chunk.ended:
                return
            offset = chunk.next_offset

    def _ask(self, method: str, path: str, kind: type[T], **arguments: Any) -> T:
        return msgspec.json.decode(self._send(method, path, **arguments).content, type=kind)

    def _send(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **arguments)
        except httpx.TimeoutException as error:
            raise DaemonUnavailable(f"The daemon at {self._where} did not answer in time.") from error
        except (httpx.TransportError, OSError) as error:
            raise DaemonUnavailable(f"No daemon answers at {self._where}: start one with `tierline up`.") from error
        if answer.is_success:
            return answer
        raise _error(answer)


def connect(state: Path | None = None, *, url: str = "", token: str = "", timeout_s: float = 30.0) -> Client:
    """A client for the daemon of `state` (default: the user's), or for `url` with `token`. Sends nothing yet."""
    if state is None:
        url, token = url or os.environ.get("TIERLINE_URL", ""), token or os.environ.get("TIERLINE_TOKEN", "")
    if url:
        headers = {"authorization": f"Bearer {token}"} if token else {}
        return Client(httpx.Client(base_url=url, headers=headers, timeout=timeout_s, trust_env=False), url)
    unix = StatePaths(state if state is not None else state_dir()).socket
    http = httpx.Client(transport=UnixTransport(unix), base_url="http://tierline", timeout=timeout_s, trust_env=False)
    return Client(http, str(unix))


def _segment(job_id: str) -> str:
    """The id as it stands in a URL; anything that is no id would change the path, so it is refused here."""
    if not job_id or any(not (c.isascii() and (c.isalnum() or c in "._-")) for c in job_id) or not job_id[0].isalnum():
        raise InvalidInput(f"'{job_id}' is no job id: letters, digits, '.', '_' and '-' are allowed, 64 at most.")
    return job_id


def _error(answer: httpx.Response) -> TierlineError:
    try:
        message = str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        message = f"The daemon answered {answer.status_code} without a reason."
    if answer.status_code == 404:
        return NotFound(message)
    if answer.status_code in (401, 403):
        return Refused(message)
    if answer.status_code >= 500:
        return DaemonUnavailable(message)
    return InvalidInput(message)
