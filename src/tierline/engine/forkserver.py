"""Makes instance processes quickly: imports PyTorch and Transformers once, then forks for each instance.

`python -m tierline.engine.forkserver` reads an `Order` a line from its standard input and writes a `Report` a line. It
computes nothing itself, so no thread is lost in a fork; what it has imported is shared by all instances until they change it.
When its input ends, so does it, and its instances notice that their parent is gone.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

import msgspec

from tierline.engine.settings import InstanceSettings


class Order(msgspec.Struct, frozen=True):
    settings: InstanceSettings
    log: str


class Started(msgspec.Struct, frozen=True):
    """An instance was forked."""

    name: str
    pid: int


class Ended(msgspec.Struct, frozen=True):
    """An instance has ended; `status` below 0 is a signal."""

    name: str
    pid: int
    status: int


class Report(msgspec.Struct, frozen=True):
    """One line of what the fork server writes."""

    started: Started | None = None
    ended: Ended | None = None


def serve() -> None:
    """Until standard input ends."""
    import tierline.engine.process as process  # the heavy imports, once

    _preload()
    names: dict[int, str] = {}
    child_ended, wake = os.pipe()
    os.set_blocking(wake, False)
    os.set_blocking(child_ended, False)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the server, which then stops its instances
    pending = b""
    while True:
        ready, _, _ = select.select([0, child_ended], [], [])
        if child_ended in ready:
            os.read(child_ended, 4096)
            _reap(names)
        if 0 in ready:
            data = os.read(0, 1 << 16)
            if not data:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                order = msgspec.json.decode(line, type=Order)
                pid = os.fork()
                if pid == 0:
                    _become(order, process.main)
                names[pid] = order.settings.name
                _say(Report(started=Started(order.settings.name, pid)))


def _preload() -> None:
    """What every instance would import: a model class takes most of the time."""
    import transformers
    from transformers.models.auto import modeling_auto  # noqa: F401
    from transformers.models.llama import modeling_llama  # noqa: F401
    from transformers.models.llava import modeling_llava  # noqa: F401

    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    quiet: Any = transformers.utils.logging
    quiet.disable_progress_bar()


def _become(order: Order, main: Callable[[InstanceSettings], int]) -> None:
    """In the child: run the instance and end."""
    status = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        null = os.open(os.devnull, os.O_RDONLY)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        status = main(order.settings)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _reap(names: dict[int, str]) -> None:
    while names:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        _say(Report(ended=Ended(names.pop(pid), pid, os.waitstatus_to_exitcode(status))))


def _say(report: Report) -> None:
    os.write(1, msgspec.json.encode(report) + b"\n")


if __name__ == "__main__":
    serve()
