"""The demo: a served model that answers about pictures (`demo_serving.py`), then one real sweep under several policies,
each with the same slot-seconds; a table and a plot at the end.

For each policy a daemon of its own is started in a folder of its own, `examples/digits.toml` is submitted to it (24
trainings, good and hostile hyperparameters), and after `--seconds` on every slot all is stopped. Results are judged from
outside, by what the jobs reported, with the same two normalisers for all: `CHANCE` and `TARGET`.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import demo_serving
from demo_results import Recorder, Result, write_plot, write_table
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

from tierline.cli import top
from tierline.cli.client import Client, connect
from tierline.core.errors import DaemonUnavailable, TierlineError

ROOT = Path(__file__).resolve().parent.parent
SWEEP = "digits"
TIERLINE = (sys.executable, "-m", "tierline.cli.main")
START_LIMIT_S = 30.0
STOP_LIMIT_S = 15.0
LOOK_EVERY_S = 0.5
PLAIN_LINE_EVERY_S = 5.0


@contextlib.contextmanager
def daemon(policy: str, slots: int, quantum_s: float) -> Iterator[Client]:
    """A daemon with its own state folder; at the end its jobs, itself and the folder are gone, whatever happened."""
    state = Path(tempfile.mkdtemp(prefix="tierline-demo-"))
    environment = {key: value for key, value in os.environ.items() if key not in ("TIERLINE_URL", "TIERLINE_TOKEN")}
    environment["TIERLINE_HOME"] = str(state)
    log = state / "up.log"
    command = [*TIERLINE, "up", "--slots", str(slots), "--policy", policy, "--quantum", str(quantum_s)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--restart-cost", "0.5"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    client = connect(state)
    try:
        wait_for(client, process, log)
        subprocess.run([*TIERLINE, "sweep", "digits.toml"], cwd=ROOT / "examples", env=environment, check=True)
        yield client
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # an impatient second Ctrl-C shall not cut the clean-up short
        with contextlib.suppress(TierlineError):
            stop_all(client)
        client.close()
        process.terminate()
        try:
            process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        kill_leftovers(state)
        shutil.rmtree(state, ignore_errors=True)
        signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for(client: Client, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_LIMIT_S
    while time.monotonic() < until:
        if process.poll() is not None:
            break
        with contextlib.suppress(DaemonUnavailable):
            client.health()
            return
        time.sleep(0.1)
    raise SystemExit(f"demo: the daemon did not start:\n{log.read_text(errors='replace')}")


def stop_all(client: Client) -> None:
    """Stop every job and wait until none holds a slot."""
    for job in client.jobs():
        with contextlib.suppress(TierlineError):  # it has just ended by itself
            client.stop(job.job_id, "the demo's slot-seconds are used up")
    until = time.monotonic() + STOP_LIMIT_S
    while client.jobs() and time.monotonic() < until:
        time.sleep(0.1)


def kill_leftovers(state: Path) -> None:
    """End processes that still belong to this state folder. None should; after a broken start one may."""
    needle = os.fsencode(state)
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal() or int(folder.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            if needle in (folder / "environ").read_bytes() or needle in (folder / "cmdline").read_bytes():
                os.kill(int(folder.name), signal.SIGKILL)


def run(policy: str, options: argparse.Namespace, console: Console) -> Result:
    """The sweep under one policy until its slot-seconds are used up."""
    budget = options.slots * options.seconds
    console.print(f"\n[bold]{policy}[/]: {options.slots} slots, {budget:.0f} slot-seconds for a sweep of 24 trainings")
    with daemon(policy, options.slots, options.quantum) as client:
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(40), TextColumn("{task.completed:.0f} / {task.total:.0f}")
        )
        task = bar.add_task("slot-seconds", total=budget)
        recorder = Recorder(policy, options.slots, budget)
        began = time.monotonic()
        with contextlib.ExitStack() as stack:
            live = None
            if console.is_terminal:
                live = stack.enter_context(Live(console=console, auto_refresh=False, transient=True))
            next_line = 0.0
            while (spent := options.slots * (time.monotonic() - began)) < budget:
                scene = top.look(client)
                recorder.look(scene.jobs)
                if live is not None:
                    bar.update(task, completed=spent)
                    picture: RenderableType = Group(bar, top.picture(scene))
                    live.update(picture, refresh=True)
                elif spent >= next_line:
                    next_line = spent + PLAIN_LINE_EVERY_S * options.slots
                    holding = [device.job_id for device in scene.cluster.devices if device.job_id]
                    print(
                        f"{spent:5.0f} slot-seconds: {recorder.line()}; on the slots: {', '.join(holding)}", flush=True
                    )
                time.sleep(LOOK_EVERY_S)
        recorder.look(client.jobs(all=True))
        return recorder.result(client)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--slots", type=int, default=2, help="CPU slots (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=40.0, help="per slot and policy (default: %(default)s)")
    parser.add_argument("--quantum", type=float, default=1.0, help="seconds between decisions (default: %(default)s)")
    parser.add_argument("--policies", default="explsched,fifo", help="in this order (default: %(default)s)")
    parser.add_argument("--plot", type=Path, default=ROOT / "out" / "demo.png", help="(default: out/demo.png)")
    parser.add_argument("--part", choices=("all", "jobs", "serving"), default="all", help="(default: %(default)s)")
    options = parser.parse_args()
    # Whoever ends the demo from outside gets the same clean-up as with Ctrl-C.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    console = Console(highlight=False)
    if options.part != "jobs":
        demo_serving.run(console, options.plot.with_name("demo_pictures.png"))
    if options.part == "serving":
        return
    try:
        results = [run(policy, options, console) for policy in options.policies.split(",")]
    except KeyboardInterrupt:
        print("demo: stopped; nothing of it is left running", file=sys.stderr)
        raise SystemExit(130) from None
    except (TierlineError, subprocess.CalledProcessError) as error:
        raise SystemExit(f"demo: {error}") from None
    write_table(results, console)
    write_plot(results, options.plot)
    print(f"Plot: {options.plot}")


if __name__ == "__main__":
    main()
