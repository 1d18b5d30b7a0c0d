"""Makes instance processes quickly: imports PyTorch and Transformers once, then forks for each instance.

`python -m tierline.engine.forkserver` reads an `Order` a line from its standard input and writes a `Report` a line. It
computes nothing itself, so no thread is lost in a fork; what it has imported is shared by all instances until they change it.
When its input ends it ends its instances and itself; when it is killed, the kernel ends its instances.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from tierline.engine.settings import InstanceSettings

SAID_CHARACTERS = 400
PR_SET_PDEATHSIG = 1


class Order(msgspec.Struct, frozen=True):
    settings: InstanceSettings
    log: str


class Started(msgspec.Struct, frozen=True):
    """An instance was forked."""

    name: str
    pid: int


class Ended(msgspec.Struct, frozen=True):
    """An instance has ended; `status` below 0 is a signal, `said` the last line that it printed."""

    name: str
    pid: int
    status: int
    said: str


class Report(msgspec.Struct, frozen=True):
    """One line of what the fork server writes."""

    started: Started | None = None
    ended: Ended | None = None


def serve() -> None:
    """Until standard input ends."""
    # Ctrl-C and the end of a whole group of processes are for the server, which then stops its instances in good order.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    import tierline.engine.process as process  # the heavy imports, once

    _preload()
    reports = os.dup(1)
    os.dup2(2, 1)  # what a library prints is no report
    children: dict[int, Order] = {}
    child_ended, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(child_ended, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    pending = b""
    with contextlib.suppress(BrokenPipeError):  # nobody listens any more
        while True:
            ready, _, _ = select.select([0, child_ended], [], [])
            if child_ended in ready:
                os.read(child_ended, 4096)
                _reap(children, reports)
            if 0 in ready:
                data = os.read(0, 1 << 16)
                if not data:
                    break
                *lines, pending = (pending + data).split(b"\n")
                for line in lines:
                    order = msgspec.json.decode(line, type=Order)
                    parent, pid = os.getpid(), os.fork()
                    if pid == 0:
                        for inherited in (child_ended, wake, reports):
                            os.close(inherited)
                        _become(order, parent, process.main)
                    children[pid] = order
                    _say(reports, Report(started=Started(order.settings.name, pid)))
    for pid in children:
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
    for pid in children:
        os.waitpid(pid, 0)


def _preload() -> None:
    """What every instance would import: a model class takes most of the time."""
    import transformers
    from transformers.models.auto import modeling_auto  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401
    from transformers.models.llava import modeling_llava  # noqa: F401

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    quiet: Any = transformers.utils.logging
    quiet.disable_progress_bar()


def _become(order: Order, parent: int, main: Callable[[InstanceSettings, int], int]) -> None:
    """In the child: run the instance and end."""
    status = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = main(order.settings, parent)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reap(children: dict[int, Order], reports: int) -> None:
    while children:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        order = children.pop(pid)
        said = _last_line(Path(order.log))
        _say(reports, Report(ended=Ended(order.settings.name, pid, os.waitstatus_to_exitcode(status), said)))


def _last_line(log: Path) -> str:
    """The last line that a process has printed."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - 4 * SAID_CHARACTERS))
            lines = file.read().decode(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][-SAID_CHARACTERS:] if lines else ""


def _say(reports: int, report: Report) -> None:
    os.write(reports, msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    serve()
    sys.stderr.flush()
    os._exit(0)  # to take PyTorch's modules apart would need a second
