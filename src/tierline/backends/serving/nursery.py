"""The fork server of one host, from the outside: orders go in, births and deaths come out, and another takes its place when
it dies."""

from __future__ import annotations

import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from tierline.engine.forkserver import Ended, Order, Report, Started

log = logging.getLogger(__name__)
FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # what lived so long may start again at once
STOP_S = 10.0
KILLED = -9


def next_pause_s(last_s: float, lived_s: float) -> float:
    """How long to wait before the next start of what has died."""
    return FIRST_PAUSE_S if lived_s > STEADY_S else min(last_s * 2, LONGEST_PAUSE_S)


@dataclass(frozen=True, slots=True)
class Host:
    """Where instances run. `command` comes before the fork server's own, as in `("ssh", "other")`; its standard input and
    output are those of the fork server. `address`: where instances there can be reached ("" = the server's own)."""

    command: tuple[str, ...] = ()
    address: str = ""
    python: str = sys.executable


class Nursery:
    """`on_started` and `on_ended` are called from its thread. When the fork server dies, so do its instances, and each is
    told to have ended. `folder`: for what libraries leave behind; removed by its owner."""

    def __init__(
        self, host: Host, folder: Path, on_started: Callable[[Started], None], on_ended: Callable[[Ended], None]
    ) -> None:
        self._host = host
        self._folder = folder
        self._on_started = on_started
        self._on_ended = on_ended
        self._lock = threading.Lock()
        self._orders: dict[str, Order] = {}  # of instances that have not ended
        self._closing = threading.Event()
        self._process: subprocess.Popen[bytes] | None = self._spawn()
        self._thread = threading.Thread(target=self._watch, name="fork server", daemon=True)
        self._thread.start()

    @property
    def pid(self) -> int:
        """Of the fork server; 0 while there is none."""
        with self._lock:
            return self._process.pid if self._process is not None else 0

    def start(self, order: Order) -> None:
        with self._lock:
            self._orders[order.settings.name] = order
            self._write([order])

    def close(self) -> None:
        """End the fork server and with it all instances that are still there."""
        self._closing.set()
        with self._lock:
            process = self._process
        if process is not None and process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self._thread.join()

    def _spawn(self) -> subprocess.Popen[bytes]:
        # Threads of several lanes and processes share the cores: one that waits must not spin on them.
        own = {"OMP_WAIT_POLICY": "passive", "TORCHINDUCTOR_CACHE_DIR": str(self._folder / "compiled")}
        environment = {**own, **os.environ, "TOKENIZERS_PARALLELISM": "false"}
        command = [*self._host.command, self._host.python, "-P", "-m", "tierline.engine.forkserver"]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def _write(self, orders: list[Order]) -> None:
        """Under the lock. What a dying fork server does not read is told to have ended when its end is noticed."""
        if self._process is None or not orders:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(b"".join(msgspec.json.encode(order) + b"\n" for order in orders))
            self._process.stdin.flush()

    def _watch(self) -> None:
        pause_s = FIRST_PAUSE_S
        while self._process is not None:
            began = time.monotonic()
            self._listen(self._process)
            with self._lock:
                status = self._bury(self._process)
                lost, self._orders, self._process = self._orders, {}, None
            if self._closing.is_set():
                return
            log.warning("The fork server of the instances ended with status %d; another is started.", status)
            for name in lost:
                self._on_ended(Ended(name, 0, KILLED, "its fork server ended"))
            pause_s = next_pause_s(pause_s, time.monotonic() - began)
            self._closing.wait(pause_s)
            with self._lock:
                if self._closing.is_set():
                    return
                self._process = self._spawn()
                self._write(list(self._orders.values()))

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            report = msgspec.json.decode(line, type=Report)
            if report.started is not None:
                self._on_started(report.started)
            if report.ended is not None:
                with self._lock:
                    self._orders.pop(report.ended.name, None)
                self._on_ended(report.ended)

    @staticmethod
    def _bury(process: subprocess.Popen[bytes]) -> int:
        process.kill()  # it may have closed its output and live on
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        return process.wait()


def nurseries(
    hosts: Mapping[str, Host],
    folder: Path,
    on_started: Callable[[Started], None],
    on_ended: Callable[[Ended], None],
) -> dict[Host, Nursery]:
    """One for each host of these slots."""
    return {host: Nursery(host, folder, on_started, on_ended) for host in dict.fromkeys(hosts.values())}
