"""`tierline submit -- CMD…`: one job."""

from __future__ import annotations

import os
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli import options, render
from tierline.cli.stop import ENDED

if TYPE_CHECKING:
    from tierline.cli.client import Client
    from tierline.core.status import JobStatus

POLL_S = 0.25


def register(app: typer.Typer) -> None:
    # Options stand before the command; whatever follows its first word is the command's own.
    settings = {"allow_interspersed_args": False}
    app.command("submit", rich_help_panel="Jobs", context_settings=settings)(submit)


def wait_for(client: Client, job_id: str) -> JobStatus:
    """Block until the job has ended, telling on stderr how it stands."""
    with render.console(stderr=True).status(f"{job_id}: waiting") as line:
        while (job := client.job(job_id)).phase not in ENDED:
            at = f", step {job.step}, loss {render.number(job.loss)}" if job.step is not None else ""
            line.update(f"{job_id}: {job.phase}{at}")
            time.sleep(POLL_S)
    return job


def submit(
    argv: Annotated[list[str] | None, typer.Argument(metavar="-- CMD...", help="Run without a shell.")] = None,
    name: Annotated[str, typer.Option("--name", "--id", help="The job's id; otherwise the daemon chooses one.")] = "",
    sweep: Annotated[str, typer.Option("--sweep", help="Jobs of one sweep have losses that compare.")] = "",
    gpus: options.Gpus = "1",
    gpu_type: options.GpuType = None,
    gpu_memory: options.GpuMemory = "",
    job_type: options.JobType = "",
    sm_util: options.SmUtil = 0.0,
    bw_util: options.BwUtil = 0.0,
    exclusive: options.Exclusive = False,
    metric: options.Metric = "loss",
    progress: options.ProgressFrom = "report",
    steps: options.Steps = 0,
    chance: options.Chance = None,
    target: options.Target = None,
    kind: options.Kind = "exploratory",
    user: options.User = "",
    priority: options.Priority = 0,
    after: options.After = None,
    hold: options.Hold = False,
    grace: options.Grace = "30s",
    no_preempt: options.NoPreempt = False,
    restarts: options.Restarts = 3,
    deadline: options.Deadline = "",
    env: options.Env = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until it has ended; exit code 1 unless completed.")] = False,
    as_json: options.AsJson = False,
) -> None:
    """Submit one job and print its id. On return it is durable: a crash of the daemon does not lose it.

    Example: `tierline submit --gpus 1..4 --metric accuracy:max -- python train.py --lr 0.1`
    """
    from tierline.cli import jobspec
    from tierline.cli.client import connect

    declared = None
    if chance is not None or target is not None:
        sweep = sweep or name or f"single-{secrets.token_hex(3)}"
        declared = jobspec.sweep_of(sweep, metric, chance, target)
    request = jobspec.job(
        argv or (),
        now_s=time.time(),
        cwd=Path(os.getcwd()),
        job_id=name,
        sweep=sweep,
        user=user,
        kind=kind,
        gpus_text=gpus,
        gpu_types=gpu_type or (),
        gpu_memory=gpu_memory,
        metric_text=metric,
        progress_text=progress,
        steps=steps,
        priority=priority,
        after=after or (),
        held=hold,
        grace=grace,
        preemptible=not no_preempt,
        restarts=restarts,
        deadline_text=deadline,
        env=env or (),
        job_type=job_type,
        sm_util=sm_util,
        bw_util=bw_util,
        exclusive=exclusive,
    )
    with connect() as client:
        (job_id,) = client.submit([request], declared)
        if not as_json:
            print(job_id, flush=True)
        if not wait:
            if as_json:
                render.print_json({"job_id": job_id})
            return
        job = wait_for(client, job_id)
    if as_json:
        render.print_json(job)
    else:
        print(f"{job_id} {job.phase}: {job.reason}", file=sys.stderr)
    if job.phase != "completed":
        raise typer.Exit(1)
