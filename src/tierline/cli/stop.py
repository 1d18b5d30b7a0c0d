"""`tierline stop`: end jobs for good. Also how several commands pick the jobs they act on."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from tierline.cli.client import Client
    from tierline.core.status import JobStatus

ENDED = ("completed", "failed", "stopped")

JobIds = Annotated[list[str] | None, typer.Argument(metavar="[JOB]...", help="Ids of jobs.", show_default=False)]
SweepName = Annotated[str, typer.Option("--sweep", help="All live jobs of this sweep.")]


def register(app: typer.Typer) -> None:
    app.command("stop", rich_help_panel="Jobs")(stop)


def act(job_ids: list[str] | None, sweep: str, action: Callable[[Client, str], JobStatus]) -> None:
    """Carry `action` out on the named jobs, or on the live ones of a sweep, and print the id and state of each.

    Every named job is looked up first, so that a misspelt id stops the command before anything is changed.
    """
    from tierline.cli.client import connect
    from tierline.core.errors import InvalidInput, NotFound

    if bool(job_ids) == bool(sweep):
        raise InvalidInput("Give either the ids of jobs or --sweep NAME.")
    with connect() as client:
        if sweep:
            names = [job.job_id for job in client.jobs(sweep=sweep)]
            if not names:
                raise NotFound(f"sweep '{sweep}' has no live jobs.")
        else:
            names = [client.job(job_id).job_id for job_id in job_ids or ()]
        for name in names:
            try:
                job = action(client, name)
            except InvalidInput:
                # A job of a sweep may have ended by itself since it was listed.
                job = client.job(name)
                if not (sweep and job.phase in ENDED):
                    raise
            print(f"{job.job_id} {job.phase}")


def stop(
    job_ids: JobIds = None,
    sweep: SweepName = "",
    reason: Annotated[str, typer.Option("--reason", "-m", help="What `tierline why` shall say.")] = "",
) -> None:
    """End jobs for good: SIGTERM, their grace period to write a checkpoint, then SIGKILL.

    Example: `tierline stop digits-3 digits-7`, or all of a sweep: `tierline stop --sweep digits`
    """
    act(job_ids, sweep, lambda client, job_id: client.stop(job_id, reason))
