"""`tierline why NAME`: every decision about a job, each with its reason, density and clearing price. With a server's address
or a record those about a serving instance or a request (`why_serving`)."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli import render
from tierline.cli.serving_address import ApiKey, is_url
from tierline.core.errors import InvalidInput

if TYPE_CHECKING:
    from tierline.core.status import JobStatus

COLUMNS = ("AFTER", "DECISION", "DEVICES", "DENSITY", "PRICE", "REASON")
NUMBERS = ("AFTER", "DENSITY", "PRICE")


def register(app: typer.Typer) -> None:
    app.command("why", rich_help_panel="Jobs")(why)


def summary(job: JobStatus) -> str:
    """One sentence about how the job stands now."""
    progress = f", step {job.step}, best loss {render.number(job.best_loss)}" if job.step is not None else ""
    place = f" on {', '.join(job.device_ids)}" if job.device_ids else ""
    if job.shares_with:
        place += f", shared with {', '.join(job.shares_with)} at {job.speed:.2f} of its speed"
    used = f"{job.attained_gpu_s:.1f} GPU-seconds used, {job.restarts} restart{'' if job.restarts == 1 else 's'}"
    return f"{job.job_id} is {job.phase}{place}{progress}; {used}."


def why(
    job_id: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A job's id, as `tierline ps` shows it; of a served model i3, r7 or an X-Request-Id."
        ),
    ],
    where: Annotated[
        str, typer.Argument(metavar="[URL|FILE]", help="The served model, or what `serve --record` wrote.")
    ] = "",
    last: Annotated[int, typer.Option("--last", "-n", min=0, help="Only the newest N decisions, 0 = all.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="All fields as JSON, times in ns.")] = False,
    api_key: ApiKey = "",
) -> None:
    """Tell why a job runs, waits or has ended: its decisions in order, and its reason now. Or why an instance of a served
    model has its roles and group, or what became of a request.

    DENSITY is the utility per GPU-second that the job bid, PRICE the bid of the best that got nothing: a job with a
    density below the price waits.

    Examples: `tierline why digits-3`, `tierline why i3 http://127.0.0.1:8000`, `tierline why r7 run.jsonl` after
    `tierline serve --record run.jsonl`
    """
    if where:
        from tierline.cli import why_serving

        if is_url(where):
            why_serving.show_live(job_id, where, last, as_json, api_key)
        elif Path(where).is_file():
            why_serving.show_recorded(job_id, Path(where), last, as_json)
        else:
            raise InvalidInput(f"'{where}' is neither an address (http://...) nor a file that `serve --record` wrote.")
        return
    from tierline.cli.client import connect

    with connect() as client:
        answer = client.why(job_id)
    decisions = answer.decisions[-last:] if last else answer.decisions
    if as_json:
        render.print_json({"job": answer.job, "decisions": decisions})
        return
    job = answer.job
    print(summary(job))
    if job.argv:
        print(f"Command: {shlex.join(job.argv)}")
    print()
    rows = [
        [
            f"{render.seconds(decision.time_ns - job.submitted_ns):.1f}s",
            decision.action + (f" #{decision.attempt}" if decision.attempt is not None else ""),
            ",".join(decision.devices) or "-",
            render.number(decision.density, 3),
            render.number(decision.price, 3),
            decision.reason,
        ]
        for decision in decisions
    ]
    render.print_table(COLUMNS, rows, NUMBERS, wrap=True)
    if job.reason:
        print(f"\nNow: {job.phase}: {job.reason}")
