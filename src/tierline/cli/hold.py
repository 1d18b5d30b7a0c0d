"""`tierline hold` and `tierline release`: keep jobs off the devices for a while."""

from __future__ import annotations

import typer

from tierline.cli.stop import JobIds, SweepName, act


def register(app: typer.Typer) -> None:
    app.command("hold", rich_help_panel="Jobs")(hold)
    app.command("release", rich_help_panel="Jobs")(release)


def hold(job_ids: JobIds = None, sweep: SweepName = "") -> None:
    """Hold jobs back: running ones checkpoint and leave, waiting ones stay where they are until `tierline release`.

    Example: `tierline hold digits-3`
    """
    act(job_ids, sweep, lambda client, job_id: client.hold(job_id))


def release(job_ids: JobIds = None, sweep: SweepName = "") -> None:
    """Let held jobs run again.

    Example: `tierline release --sweep digits`
    """
    act(job_ids, sweep, lambda client, job_id: client.release(job_id))
