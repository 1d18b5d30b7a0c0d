"""`tierline ps`: the jobs, one line each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli import render

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tierline.cli.client import Client
    from tierline.core.status import JobStatus

COLUMNS = ("JOB", "SWEEP", "STATE", "GPUS", "STEP", "LOSS", "UTILITY", "DENSITY", "PRICE", "AGE", "REASON")
NUMBERS = ("GPUS", "STEP", "LOSS", "UTILITY", "DENSITY", "PRICE", "AGE")


def register(app: typer.Typer) -> None:
    app.command("ps", rich_help_panel="Jobs")(ps)


def row(job: JobStatus, now_ns: int) -> list[str]:
    """The cells of one job. The age of an ended job is the time it took from submission to end."""
    steps = "-" if job.step is None else f"{job.step}/{job.total_steps}" if job.total_steps else str(job.step)
    return [
        job.job_id,
        job.sweep or "-",
        job.phase,
        f"{job.gpus}*" if job.shares_with else str(job.gpus),
        steps,
        render.number(job.loss),
        render.number(job.utility, 3),
        render.number(job.density, 3),
        render.number(job.price, 3),
        render.duration(render.seconds((job.ended_ns or now_ns) - job.submitted_ns)),
        job.reason,
    ]


def ps(
    all_jobs: Annotated[bool, typer.Option("--all", "-a", help="Jobs that have ended too.")] = False,
    sweep: Annotated[str, typer.Option("--sweep", help="Only the jobs of this sweep.")] = "",
    user: Annotated[str, typer.Option("--user", help="Only the jobs of this user.")] = "",
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Only the ids, one a line.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Again every --interval; q or Ctrl-C leaves.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between prints of --watch.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="All fields as JSON, times in ns.")] = False,
) -> None:
    """List the jobs: where each is, what it has reached and why it stands where it does.

    LOSS is the newest value of the metric, with its sign turned for a metric that shall grow (--metric NAME:max).
    UTILITY is the progress made (0 chance, 1 target), DENSITY the utility that the next GPU-second is expected to buy,
    PRICE what a GPU-second cost when the job was last decided about. A * behind GPUS: another job uses them too.

    Example: `tierline ps --sweep digits --all`
    """
    from tierline.cli.client import connect

    def jobs_of(client: Client) -> list[JobStatus]:
        return client.jobs(all=all_jobs, user=user, sweep=sweep)

    def rows_of(client: Client) -> list[list[str]]:
        now_ns = client.cluster().now_ns
        return [row(job, now_ns) for job in jobs_of(client)]

    def show(client: Client) -> None:
        if as_json:
            render.print_json({"jobs": jobs_of(client)})
        elif quiet:
            for job in jobs_of(client):
                print(job.job_id)
        else:
            rows = rows_of(client)
            render.print_table(COLUMNS, rows, NUMBERS)
            if not rows and render.on_terminal():
                print("(no such job)" if all_jobs else "(no live job; --all shows those that have ended)")

    with connect() as client:
        if watch and render.on_terminal() and not (as_json or quiet):
            follow(lambda: render.rich_table(COLUMNS, rows_of(client), NUMBERS), interval)
            return
        show(client)
        while watch:
            time.sleep(interval)
            print(flush=True)
            show(client)


def follow(look: Callable[[], RenderableType], interval_s: float) -> None:
    """Show what `look` gives, again and again on a screen of its own, until q or Ctrl-C."""
    from rich.live import Live

    from tierline.cli.top import keys, quit_pressed

    with keys(), Live(look(), console=render.console(), screen=True, auto_refresh=False) as live:
        while not quit_pressed(interval_s):
            live.update(look(), refresh=True)
