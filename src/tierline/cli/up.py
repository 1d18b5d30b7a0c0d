"""`tierline up` and `tierline down`: the daemon begins and ends. Jobs that run outlive it and are adopted at the next up."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tierline.cli.client import Client
    from tierline.config import DaemonOptions

START_S = 60.0
END_S = 60.0
POLL_S = 0.05
FAIR_BY = ("job", "user", "sweep")

StateOption = Annotated[
    Path | None,
    typer.Option("--state", metavar="DIR", help="State folder. [default: $TIERLINE_HOME, else the XDG state folder]"),
]


def register(app: typer.Typer) -> None:
    app.command("up", rich_help_panel="Cluster")(up)
    app.command("down", rich_help_panel="Cluster")(down)


def up(
    slots: Annotated[
        int | None, typer.Option(metavar="N", help="Schedule N CPU slots. [default: this machine's GPUs]")
    ] = None,
    policy: Annotated[str | None, typer.Option(metavar="NAME", help="See `tierline policies`.")] = None,
    quantum: Annotated[float | None, typer.Option(metavar="SECONDS", help="Time between preemptive rounds.")] = None,
    restart_cost: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="What it costs a job to stop and go on later.")
    ] = None,
    fair_by: Annotated[str | None, typer.Option(metavar="job|user|sweep", help="Whose jobs share one weight.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of the policy's draws.")] = None,
    share: Annotated[
        bool | None,
        typer.Option("--share/--exclusive", help="Two jobs may use one device, where that gains. [default: exclusive]"),
    ] = None,
    pairs: Annotated[
        str | None, typer.Option(metavar="FILE", help="Measured speeds of jobs beside each other, as Gavel has them.")
    ] = None,
    state: StateOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Listen on TCP too; callers need a token of tokens.json.")
    ] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="A tierline.toml; flags go before it.")] = None,
    foreground: Annotated[
        bool, typer.Option("--foreground/--detach", help="Stay here, or return once the daemon answers.")
    ] = True,
) -> None:
    """Start the daemon of this machine: it takes jobs, gives them devices, and survives its own death.

    Example: `tierline up --slots 2 --quantum 5 --detach`
    """
    import msgspec

    from tierline.config import read_options
    from tierline.core.errors import UnknownName

    if fair_by not in (None, *FAIR_BY):
        raise UnknownName("--fair-by", str(fair_by), FAIR_BY)
    flags: dict[str, Any] = {
        "slots": slots,
        "policy": policy,
        "quantum": quantum,
        "restart_cost": restart_cost,
        "fair_by": fair_by,
        "seed": seed,
        "share": share,
        "pairs": pairs if pairs is None else str(Path(pairs).absolute()),
        "state": state,
        "listen": listen,
    }
    options = read_options(config, flags)
    # -P: a file of the folder we happen to stand in must not be imported in place of a library.
    command = [sys.executable, "-P", "-m", "tierline.server", msgspec.json.encode(options, enc_hook=str).decode()]
    if foreground:
        sys.stdout.flush()
        sys.stderr.flush()
        os.execv(sys.executable, command)
    _detach(options, command)


def _detach(options: DaemonOptions, command: list[str]) -> None:
    """Start the daemon in a session of its own and wait until it answers. Raises what kept it from beginning."""
    from rich.console import Console

    from tierline.cli.client import connect
    from tierline.config import StatePaths, build_scheduler, check_sharing, setting_of
    from tierline.core.errors import InvalidInput, StateUnusable

    build_scheduler(setting_of(options))  # an unknown policy is told before a folder for the log is made
    check_sharing(options)
    paths = StatePaths(options.state)
    is_new = not options.state.exists()
    try:
        options.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        log = os.open(paths.log, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StateUnusable(f"The state folder '{options.state}' cannot be used: {error.strerror}.") from error
    with open(log, "r+b", buffering=0) as file:
        begin = file.seek(0, os.SEEK_END)
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, start_new_session=True)
        deadline = time.monotonic() + START_S
        with Console(stderr=True).status("Starting the daemon …"), connect(options.state) as client:
            policy = _policy_of(client, child, deadline)
        if policy:
            typer.echo(f"Tierline is up (process {child.pid}, policy {policy}, log {paths.log}).")
            return
        if child.poll() is None:
            child.terminate()
            raise StateUnusable(f"The daemon did not answer within {START_S:g} s and was ended; see '{paths.log}'.")
        file.seek(begin)
        said = file.read().decode(errors="replace").strip().splitlines()
    if begin == 0:  # nothing half-created stays
        paths.log.unlink(missing_ok=True)
    if is_new:
        with contextlib.suppress(OSError):  # the daemon had come so far as to record something
            options.state.rmdir()
    raise InvalidInput(said[-1].removeprefix("tierline: ") if said else f"The daemon ended at once; see '{paths.log}'.")


def _policy_of(client: Client, child: subprocess.Popen[bytes], deadline_s: float) -> str:
    """The policy of the daemon `child` as soon as it answers; "" when it ended, or did not answer by `deadline_s`."""
    from tierline.core.errors import DaemonUnavailable

    while child.poll() is None and time.monotonic() < deadline_s:
        with contextlib.suppress(DaemonUnavailable):
            health = client.health()
            if health.pid == child.pid:
                return health.policy
        time.sleep(POLL_S)
    return ""


def down(state: StateOption = None) -> None:
    """End the daemon. Jobs that run go on, and the next `tierline up` adopts them.

    Example: `tierline down`
    """
    from rich.console import Console

    from tierline.config import state_dir
    from tierline.core.errors import DaemonUnavailable, StateUnusable
    from tierline.runtime.store import holder

    root = state.absolute() if state is not None else state_dir()
    process = holder(root)
    if not process:
        raise DaemonUnavailable(
            f"No daemon has the state folder '{root}': there is none to end (`tierline up` starts one)."
        )
    os.kill(process, signal.SIGTERM)
    deadline = time.monotonic() + END_S
    with Console(stderr=True).status("Ending the daemon …"):
        while holder(root) == process:
            if time.monotonic() > deadline:
                raise StateUnusable(f"The daemon (process {process}) has not ended within {END_S:g} s.")
            time.sleep(POLL_S)
    typer.echo("The daemon has ended. Jobs that were running go on and are adopted at the next `tierline up`.")
