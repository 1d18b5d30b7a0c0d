"""The HTTP API over one daemon: FastAPI routes that ask the scheduler or submit events. No state of its own.

Routes are plain functions, so they run in worker threads and may wait for the disk. Statuses are encoded by msgspec
straight from the core's dataclasses; the models in `schemas.py` describe them.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import asdict, replace
from typing import Annotated, Any, Protocol

import msgspec
from fastapi import Depends, FastAPI, Query, Request, Response
from fastapi import Path as PathParameter
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from tierline.core.actions import PreemptJob, RecordEnd, RecordRefusal, StartJob, StopJob
from tierline.core.errors import InvalidInput, NotFound, Refused, StateUnusable, TierlineError
from tierline.core.events import (
    Event,
    JobExited,
    JobHeld,
    JobReleased,
    JobSubmitted,
    ProgressReported,
    SharesSet,
    SlowdownSeen,
    StopRequested,
    SweepDeclared,
)
from tierline.core.nouns import NS_PER_S, Job, Phase, Sweep
from tierline.core.status import JobStatus
from tierline.runtime.codec import decode_actions, decode_event
from tierline.runtime.metrics import prometheus
from tierline.server import schemas
from tierline.server.accept import job_of, known_sweep, share_pairs, sweep_of
from tierline.server.auth import Principal
from tierline.server.logs import read_log
from tierline.server.sentences import sentence
from tierline.server.services import Services

JobId = Annotated[str, PathParameter(pattern=schemas.ID_PATTERN)]
MAX_LOG_BYTES = 8 * 1024 * 1024
MAX_EVENTS = 10_000
TERMINAL = frozenset(phase.name.lower() for phase in Phase if phase.is_terminal)
_STATUS_OF = {Refused: 403, NotFound: 404, StateUnusable: 503}


class OnBroken(Protocol):
    """Told when the event table can no longer be written, so that the daemon ends."""

    def __call__(self, sentence: str) -> None: ...


def principal(request: Request) -> Principal:
    """Put there by the gate; a request that came around it is nobody's."""
    who: Principal = request.state.principal
    return who


Who = Annotated[Principal, Depends(principal)]


def create_app(services: Services, on_broken: OnBroken) -> FastAPI:
    """The API over `services`."""
    app = FastAPI(
        title="Tierline",
        version=services.version,
        docs_url=None,
        redoc_url=None,
        responses={422: {"model": schemas.ErrorAnswer, "description": "Input that cannot be used"}},
    )
    _add_error_handlers(app, on_broken)
    _add_job_routes(app, services)
    _add_cluster_routes(app, services)
    return app


def _add_error_handlers(app: FastAPI, on_broken: OnBroken) -> None:
    @app.exception_handler(TierlineError)
    def known_error(request: Request, error: Exception) -> Response:
        if isinstance(error, StateUnusable):
            on_broken(str(error))
        status = next((code for kind, code in _STATUS_OF.items() if isinstance(error, kind)), 422)
        return _error(status, type(error).__name__, str(error))

    @app.exception_handler(RequestValidationError)
    def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        return _error(422, "InvalidInput", sentence(error.errors(), error.body))

    @app.exception_handler(HTTPException)
    def http_error(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return _error(error.status_code, "HTTPError", f"{request.method} {request.url.path}: {error.detail}.")


def _error(status: int, kind: str, message: str) -> Response:
    return JSONResponse({"error": {"type": kind, "message": message}}, status)


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _add_job_routes(app: FastAPI, services: Services) -> None:
    driver, scheduler, clock = services.driver, services.scheduler, services.clock
    naming = threading.Lock()
    given = services.table.submitted()

    def status_of(job_id: str) -> JobStatus:
        return driver.query(lambda: scheduler.status(job_id, clock.now_ns()))

    def own_job(job_id: str, who: Principal, deed: str) -> Job:
        job = driver.query(lambda: scheduler.job(job_id))
        if job.user != who.user and not who.admin:
            raise Refused(f"job '{job_id}' belongs to user '{job.user}': '{who.user}' may not {deed} it.")
        return job

    def is_known(job_id: str) -> bool:
        try:
            driver.query(lambda: scheduler.job(job_id))
        except NotFound:
            return False
        return True

    def names(requests: list[schemas.JobRequest]) -> tuple[list[str], int]:
        """The ids asked for; j1, j2, … where none was, and how far these have counted."""
        count = given
        taken = {request.job_id for request in requests if request.job_id}
        ids: list[str] = []
        for request in requests:
            job_id = request.job_id
            while not job_id:
                count += 1
                job_id = f"j{count}"
                if job_id in taken or is_known(job_id):
                    job_id = ""
            ids.append(job_id)
        return ids, count

    @app.post("/v1/jobs", status_code=201, response_model=schemas.Submitted)
    def submit(body: schemas.Submission, who: Who) -> Response:
        """Submit jobs, all or none, with the sweep they belong to. On return they are durable."""
        if not body.jobs and body.sweep is None:
            raise InvalidInput("Nothing is submitted: 'jobs' is empty and there is no 'sweep'.")
        nonlocal given
        with naming:
            ids, count = names(body.jobs)
            known = driver.query(scheduler.sweeps)
            events: list[Event] = []
            if body.sweep is not None:
                events.append(SweepDeclared(known_sweep(sweep_of(body.sweep, who), known, who)))
            for sweep_id in {request.sweep for request in body.jobs}:
                known_sweep(Sweep(sweep_id), known, who)  # nobody joins another's sweep: that would move its baseline
            events += [
                JobSubmitted(job_of(request, job_id, who)) for request, job_id in zip(body.jobs, ids, strict=True)
            ]
            driver.submit(events)
            given = count  # only now: a refusal uses up no name
        return _json({"job_ids": ids}, 201)

    @app.get("/v1/jobs", response_model=schemas.Jobs)
    def jobs(who: Who, all_: Annotated[bool, Query(alias="all")] = False, user: str = "", sweep: str = "") -> Response:
        """Jobs in order of submission; those that have ended only with `all`."""
        rows = [
            row
            for row in driver.query(lambda: scheduler.statuses(clock.now_ns()))
            if (all_ or row.phase not in TERMINAL) and user in ("", row.user) and sweep in ("", row.sweep)
        ]
        return _json({"jobs": rows})

    @app.get("/v1/jobs/{job_id}", response_model=schemas.JobStatus)
    def job(job_id: JobId, who: Who) -> Response:
        return _json(status_of(job_id))

    @app.get("/v1/jobs/{job_id}/why", response_model=schemas.Why)
    def why(job_id: JobId, who: Who) -> Response:
        """The decisions about a job with their reasons, newest last, and how it stands now."""
        status = status_of(job_id)
        decisions: list[dict[str, Any]] = []
        for row in services.table.about(job_id, "event", "action"):
            decisions += _decisions(row.seq, row.time_ns, job_id, decode_event(row.kind, row.body), row.actions)
        return _json({"job": status, "decisions": decisions})

    @app.get("/v1/jobs/{job_id}/reports", response_model=schemas.Reports)
    def reports(job_id: JobId, who: Who) -> Response:
        """Every progress report of the job, oldest first; `loss` is lower-is-better, null where it was not finite."""
        own_job(job_id, who, "read the reports of")
        rows = []
        for row in services.table.about(job_id, "report"):
            event = decode_event(row.kind, row.body)
            assert isinstance(event, ProgressReported)
            rows += [
                {"step": r.step, "loss": r.loss, "time_ns": r.time_ns, "attempt": r.attempt}
                for r in event.reports
                if r.job_id == job_id
            ]
        return _json({"reports": rows})

    @app.get("/v1/jobs/{job_id}/logs", response_class=Response)
    def logs(
        job_id: JobId, who: Who, offset: int = 0, limit: Annotated[int, Query(ge=1, le=MAX_LOG_BYTES)] = 1 << 20
    ) -> Response:
        """Bytes the job printed. `offset`: the X-Tierline-Next-Offset of the last answer, or a count of bytes from the
        oldest kept, or, when negative, from the end. X-Tierline-Ended: true = the job is over and nothing follows;
        X-Tierline-Gap: true = output was rotated away before it was asked for."""
        own_job(job_id, who, "read the output of")
        over = status_of(job_id).phase in TERMINAL  # asked before reading: what is written in between is not missed
        chunk = read_log(services.log_path(job_id), offset, limit)
        headers = {
            "x-tierline-next-offset": str(chunk.next_mark),
            "x-tierline-gap": str(chunk.gap).lower(),
            "x-tierline-ended": str(over and chunk.at_end).lower(),
        }
        return Response(chunk.data, headers=headers, media_type="application/octet-stream")

    @app.post("/v1/jobs/{job_id}/stop", response_model=schemas.JobStatus)
    def stop(job_id: JobId, who: Who, body: schemas.StopBody | None = None) -> Response:
        own_job(job_id, who, "stop")
        reason = body.reason if body is not None else ""
        driver.submit([StopRequested(job_id, who.user, reason) if reason else StopRequested(job_id, who.user)])
        return _json(status_of(job_id))

    @app.post("/v1/jobs/{job_id}/hold", response_model=schemas.JobStatus)
    def hold(job_id: JobId, who: Who) -> Response:
        own_job(job_id, who, "hold")
        driver.submit([JobHeld(job_id, who.user)])
        return _json(status_of(job_id))

    @app.post("/v1/jobs/{job_id}/release", response_model=schemas.JobStatus)
    def release(job_id: JobId, who: Who) -> Response:
        own_job(job_id, who, "release")
        driver.submit([JobReleased(job_id, who.user)])
        return _json(status_of(job_id))


def _decisions(seq: int, time_ns: int, job_id: str, event: Event, actions: str) -> list[dict[str, Any]]:
    """What an event and its actions say about one job."""

    def entry(action: str, reason: str, **more: Any) -> dict[str, Any]:
        blank = {"density": None, "price": None, "devices": (), "attempt": None}
        return {"seq": seq, "time_ns": time_ns, "action": action, "reason": reason} | blank | more

    found = []
    if isinstance(event, JobSubmitted) and event.job.job_id == job_id:
        found.append(entry("submitted", f"by {event.job.user}"))
    elif isinstance(event, (JobHeld, JobReleased, StopRequested)) and event.job_id == job_id:
        name = {JobHeld: "hold asked", JobReleased: "release asked", StopRequested: "stop asked"}[type(event)]
        found.append(entry(name, f"by {event.by}"))
    elif isinstance(event, JobExited) and event.job_id == job_id:
        found.append(entry("exited", f"{event.outcome}: {event.reason}", attempt=event.attempt))
    elif isinstance(event, SlowdownSeen) and event.job_id == job_id:
        seen = f"ran at {event.speed:.2f} of its speed beside {', '.join(event.with_jobs)}"
        found.append(entry("slowdown", f"{seen} for {event.window_ns / NS_PER_S:.0f} s", attempt=event.attempt))
    for action in decode_actions(actions):
        if getattr(action, "job_id", None) != job_id:
            continue
        match action:
            case StartJob():
                more = {"density": action.density, "price": action.price, "attempt": action.attempt}
                name = "resume" if action.resume else "start"
                found.append(entry(name, action.reason, devices=action.device_ids, **more))
            case PreemptJob():
                more = {"density": action.density, "price": action.price, "attempt": action.attempt}
                found.append(entry("preempt", action.reason, **more))
            case StopJob():
                found.append(entry("stop", action.reason, attempt=action.attempt))
            case RecordRefusal():
                found.append(entry("refused", action.reason))
            case RecordEnd():
                found.append(entry(action.phase, action.reason))
            case _:
                pass
    return found


def _add_cluster_routes(app: FastAPI, services: Services) -> None:
    driver, scheduler, clock = services.driver, services.scheduler, services.clock

    @app.get("/v1/sweeps", response_model=schemas.Sweeps)
    def sweeps(who: Who) -> Response:
        """Every declared sweep with its jobs per phase and its best loss."""
        declared, rows = driver.query(lambda: (scheduler.sweeps(), scheduler.statuses(clock.now_ns())))
        members: dict[str, list[JobStatus]] = {}
        for row in rows:
            if row.sweep:
                members.setdefault(row.sweep, []).append(row)
        return _json({"sweeps": [_sweep_info(sweep, members.get(sweep.sweep_id, [])) for sweep in declared]})

    @app.get("/v1/shares", response_model=schemas.Shares)
    def shares(who: Who) -> Response:
        return _json({"shares": driver.query(scheduler.shares)})

    @app.put("/v1/shares", response_model=schemas.Shares)
    def set_shares(body: schemas.Shares, who: Who) -> Response:
        """Set the shares of the users named and leave all others as they are; answers with all. For administrators alone."""
        if not who.admin:
            raise Refused(f"Shares are set by an administrator alone, and '{who.user}' is none.")
        driver.submit([SharesSet(share_pairs(body.shares))])
        return _json({"shares": driver.query(scheduler.shares)})

    @app.get("/v1/cluster", response_model=schemas.Cluster)
    def cluster(who: Who) -> Response:
        found = driver.query(lambda: scheduler.cluster(clock.now_ns()))
        return _json(replace(found, policy=services.policy))  # the name by which it is chosen, not that of its class

    @app.get("/v1/events", response_model=schemas.Events)
    def events(
        who: Who,
        after: Annotated[int, Query(ge=0, le=schemas.INT63)] = 0,
        limit: Annotated[int, Query(ge=1, le=MAX_EVENTS)] = 1000,
    ) -> Response:
        """The event table from `after` on. It holds the environment of everybody's jobs: for administrators alone."""
        if not who.admin:
            raise Refused(f"The event table is shown to an administrator alone, and '{who.user}' is none.")
        rows = [
            {
                "seq": row.seq,
                "time_ns": row.time_ns,
                "kind": row.kind,
                "event": msgspec.Raw(row.body.encode()),
                "actions": msgspec.Raw(row.actions.encode()),
            }
            for row in services.table.page(after, limit)
        ]
        return _json({"events": rows})

    @app.get("/v1/policies", response_model=schemas.Policies)
    def policies(who: Who) -> Response:
        return _json({"policies": [{"name": name, "summary": text} for name, text in services.policies.items()]})

    @app.get("/health", response_model=schemas.Health)
    def health(who: Who) -> Response:
        return _json(
            {
                "version": services.version,
                "pid": services.pid,
                "policy": services.policy,
                "state": str(services.state),
                **asdict(who),
                "started_ns": services.started_ns,
                "events": services.table.last()[0],
            }
        )

    @app.get("/metrics", response_class=Response)
    def metrics(who: Who) -> Response:
        """Prometheus' text format."""
        now_ns = clock.now_ns()
        state, rows = driver.query(lambda: (scheduler.cluster(now_ns), scheduler.statuses(now_ns)))
        return Response(prometheus(services.measures, state, rows), media_type="text/plain; version=0.0.4")


def _sweep_info(sweep: Sweep, members: list[JobStatus]) -> dict[str, Any]:
    best = min(((row.best_loss, row.job_id) for row in members if row.best_loss is not None), default=(None, ""))
    return {
        "sweep_id": sweep.sweep_id,
        "user": sweep.user,
        "metric": sweep.metric.name,
        "direction": sweep.metric.direction,
        "chance": sweep.chance,
        "target": sweep.target,
        "jobs": dict(Counter(row.phase for row in members)),
        "best_loss": best[0],
        "best_job": best[1],
    }
