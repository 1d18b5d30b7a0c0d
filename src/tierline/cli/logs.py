"""`tierline logs JOB`: what a job printed, byte for byte."""

from __future__ import annotations

import sys
import time
from typing import Annotated

import typer

POLL_S = 0.25
TAIL_BYTES = 1 << 20


def register(app: typer.Typer) -> None:
    app.command("logs", rich_help_panel="Jobs")(logs)


def last_lines(data: bytes, count: int) -> bytes:
    r"""The last `count` lines of `data`, a torn last line counting as one.

    >>> last_lines(b"a\nb\nc", 2)
    b'b\nc'
    """
    return b"".join(data.splitlines(keepends=True)[-count:]) if count else b""


def logs(
    job_id: Annotated[str, typer.Argument(metavar="JOB", help="The job's id.")],
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the job has ended (or Ctrl-C).")] = False,
    tail: Annotated[
        int, typer.Option("--tail", "-n", min=-1, help="Begin with the last N lines (of the newest MiB); -1 = all.")
    ] = -1,
) -> None:
    """Print a job's output, stdout and stderr as they came, all attempts in a row.

    Example: `tierline logs -f digits-3`
    """
    from tierline.cli.client import connect

    def write(data: bytes) -> None:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()

    with connect() as client:
        if tail >= 0:
            newest = client.logs(job_id, -TAIL_BYTES, TAIL_BYTES)
            write(last_lines(newest.data, tail))
            offset, ended = newest.next_offset, newest.ended
            if not follow or ended:
                return
        else:
            offset = 0
        for chunk in client.follow(job_id, offset):
            if chunk.gap:
                print("[older output was rotated away]", file=sys.stderr)
            write(chunk.data)
            if not chunk.data:
                if not follow:
                    return
                time.sleep(POLL_S)
