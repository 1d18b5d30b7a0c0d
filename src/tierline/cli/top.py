"""`tierline top`: the cluster live: devices with their jobs, the price, the queue by density, losses, total utility; and with
the address of a served model its instances (`top_serving`)."""

from __future__ import annotations

import contextlib
import math
import os
import select
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from tierline.cli import render
from tierline.cli.serving_address import ApiKey
from tierline.core.errors import InvalidInput

if TYPE_CHECKING:
    from rich.console import RenderableType

    from tierline.cli.client import Client
    from tierline.core.status import ClusterStatus, JobStatus

QUEUE_ROWS = 12


@dataclass(frozen=True, slots=True)
class Scene:
    """What is shown at one moment. `losses` are the reported losses of the jobs on show, oldest first."""

    cluster: ClusterStatus
    jobs: Sequence[JobStatus]
    losses: dict[str, list[float]]

    @property
    def by_id(self) -> dict[str, JobStatus]:
        return {job.job_id: job for job in self.jobs}

    @property
    def queue(self) -> list[JobStatus]:
        """Jobs without devices that have not ended: the densest bid first."""
        waiting = [job for job in self.jobs if job.phase in ("queued", "held", "waiting")]
        return sorted(waiting, key=lambda job: (job.phase != "queued", -(job.density or 0.0), job.submitted_ns))

    @property
    def utility(self) -> float:
        """The sum over all jobs, ended ones too."""
        return sum(job.utility or 0.0 for job in self.jobs)


def register(app: typer.Typer) -> None:
    app.command("top", rich_help_panel="Cluster")(top)


def look(client: Client, sweep: str = "") -> Scene:
    """Ask the daemon for everything on show."""
    cluster, jobs = client.cluster(), client.jobs(all=True, sweep=sweep)
    scene = Scene(cluster, jobs, {})
    shown = [user for device in cluster.devices for user in (device.job_id, device.guest) if user]
    shown += [job.job_id for job in scene.queue[:QUEUE_ROWS] if job.reports]
    losses = {
        job_id: [row.loss for row in client.reports(job_id) if row.loss is not None] for job_id in dict.fromkeys(shown)
    }
    return Scene(cluster, jobs, losses)


def headline(scene: Scene) -> str:
    cluster = scene.cluster
    price = ", ".join(f"{kind} {render.number(value, 3)}" for kind, value in cluster.price) or "none yet"
    ended = {phase: sum(job.phase == phase for job in scene.jobs) for phase in ("completed", "stopped", "failed")}
    over = ", ".join(f"{count} {phase}" for phase, count in ended.items() if count) or "none ended"
    return (
        f"policy {cluster.policy} · price (utility per GPU-second) {price} · total utility {scene.utility:.2f} · "
        f"{cluster.running_jobs} running, {cluster.queued_jobs} queued, {over}"
    )


def device_rows(scene: Scene) -> list[list[str]]:
    rows = []
    for device in scene.cluster.devices:
        job = scene.by_id.get(device.job_id)
        if job is None:
            rows.append([device.device_id, device.blocked or device.job_id or "free", *[""] * 6])
        else:
            rows.append([device.device_id, *job_cells(scene, job)])
        if device.guest in scene.by_id:
            rows.append([f"{device.device_id} too", *job_cells(scene, scene.by_id[device.guest])])
    return rows


def job_cells(scene: Scene, job: JobStatus) -> list[str]:
    return [
        job.job_id,
        job.phase,
        "-" if job.step is None else str(job.step),
        render.number(job.loss),
        render.number(job.utility, 3),
        render.number(job.density, 3),
        render.sparkline(even(scene.losses.get(job.job_id, []))),
    ]


def even(losses: Sequence[float]) -> list[float]:
    """Positive losses on a logarithmic scale, so that one absurd start does not flatten all that follows."""
    return [math.log(loss) for loss in losses] if min(losses, default=0.0) > 0 else list(losses)


DEVICE_COLUMNS = ("DEVICE", "JOB", "STATE", "STEP", "LOSS", "UTILITY", "DENSITY", "LOSSES")
QUEUE_COLUMNS = ("NEXT", "STATE", "STEP", "LOSS", "UTILITY", "DENSITY", "LOSSES")
NUMBERS = ("STEP", "LOSS", "UTILITY", "DENSITY")


def picture(scene: Scene) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    queue = scene.queue
    more = f"… and {len(queue) - QUEUE_ROWS} more" if len(queue) > QUEUE_ROWS else ""
    return Group(
        Text(headline(scene), style="bold"),
        Text(),
        render.rich_table(DEVICE_COLUMNS, device_rows(scene), NUMBERS),
        Text(),
        render.rich_table(QUEUE_COLUMNS, [job_cells(scene, job) for job in queue[:QUEUE_ROWS]], NUMBERS),
        Text(more, style="dim"),
    )


def plain(scene: Scene) -> str:
    queue = [job_cells(scene, job) for job in scene.queue]
    return "\n\n".join(
        (
            headline(scene),
            render.plain_table(DEVICE_COLUMNS, device_rows(scene), NUMBERS),
            render.plain_table(QUEUE_COLUMNS, queue, NUMBERS),
        )
    )


@contextlib.contextmanager
def keys() -> Iterator[None]:
    """Single key presses without Enter while this lasts; nothing where stdin is no terminal."""
    if not sys.stdin.isatty():
        yield
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def quit_pressed(wait_s: float) -> bool:
    """Wait so long; True as soon as q is pressed."""
    if not sys.stdin.isatty():
        time.sleep(wait_s)
        return False
    until = time.monotonic() + wait_s
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([sys.stdin], [], [], left)
        if ready and os.read(sys.stdin.fileno(), 64)[:1] in (b"q", b"Q", b""):
            return True
    return False


def watch(look_again: Callable[[], RenderableType], interval_s: float) -> None:
    """Show what `look_again` gives, again and again, until q is pressed."""
    from rich.live import Live

    with keys(), Live(look_again(), console=render.console(), screen=True, auto_refresh=False) as live:
        while not quit_pressed(interval_s):
            live.update(look_again(), refresh=True)


def top(
    url: Annotated[
        str,
        typer.Argument(metavar="[URL]", help="A served model, as http://127.0.0.1:8000. [default: the cluster]"),
    ] = "",
    sweep: Annotated[str, typer.Option("--sweep", help="Only the jobs of this sweep.")] = "",
    interval: Annotated[float, typer.Option("--interval", min=0.1, help="Seconds between looks.")] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Print one look and leave, as in a pipe.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one look as JSON and leave.")] = False,
    api_key: ApiKey = "",
) -> None:
    """Watch the cluster live, or a served model; q or Ctrl-C leaves. In a pipe it prints once.

    Examples: `tierline top`, `tierline top http://127.0.0.1:8000`
    """
    once = once or not render.on_terminal()
    if url:
        from tierline.cli import top_serving
        from tierline.cli.serving_status import ServingClient

        if sweep:
            raise InvalidInput("--sweep is of the cluster's jobs; a served model has none.")
        with ServingClient(url, api_key) as server:
            if as_json:
                render.print_json(server.status())
            elif once:
                print(top_serving.plain(server.status()))
            else:
                watch(lambda: top_serving.picture(server.status()), interval)
        return
    from tierline.cli.client import connect

    with connect() as client:
        if as_json:
            scene = look(client, sweep)
            render.print_json({"cluster": scene.cluster, "utility": scene.utility, "jobs": scene.jobs})
        elif once:
            print(plain(look(client, sweep)))
        else:
            watch(lambda: picture(look(client, sweep)), interval)
