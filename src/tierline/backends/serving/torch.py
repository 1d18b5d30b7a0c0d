"""The built-in engine as a backend: one process an instance, messages over ZeroMQ in a private folder.

Actions become messages to instances, their words become events. A process that dies is an `InstanceLost`, and another is
started in its place after a pause that doubles with every death soon after a start.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import msgspec
import zmq

from tierline.core.contracts import Clock
from tierline.core.instance_events import (
    EncodeAsked,
    InstanceEvent,
    MoveAsked,
    PeerLost,
    RequestCancelled,
    RequestQueued,
    RolesSet,
)
from tierline.core.request import Picture
from tierline.core.serving_actions import (
    Answer,
    AskPixels,
    CancelAttempt,
    EncodeOn,
    MoveAttempt,
    NotifyLost,
    QueueAttempt,
    SetRoles,
)
from tierline.core.serving_events import InstanceJoined, InstanceLost, InstanceSaid
from tierline.engine import forkserver, wire
from tierline.engine.settings import InstanceSettings
from tierline.engine.transfer import sweep

FIRST_PAUSE_S = 0.2
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # a process that lived so long may start again at once
STOP_S = 10.0


@dataclass(slots=True)
class _Process:
    slot: str
    settings: InstanceSettings
    pid: int
    started_s: float
    socket: zmq.Socket[bytes]
    pause_s: float
    log: Path
    hello: wire.Hello | None = None
    gone: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class RunFolders:
    """`run`: sockets and logs, mode 0700. `shm`: transfers, in memory where the machine has such a place."""

    run: Path
    shm: Path
    made: list[Path] = field(default_factory=list)

    @classmethod
    def make(cls) -> RunFolders:
        run = Path(tempfile.mkdtemp(prefix="tierline-serve-"))
        memory = Path("/dev/shm")
        where = memory if os.access(memory, os.W_OK) else None
        shm = Path(tempfile.mkdtemp(prefix="tierline-", dir=where))
        return cls(run, shm, [run, shm])

    def remove(self) -> None:
        for path in self.made:
            shutil.rmtree(path, ignore_errors=True)


class Clients(Protocol):
    """Told what becomes of requests (`generator.Mailboxes`)."""

    def answer(self, action: Answer) -> None: ...

    def ask_pixels(self, action: AskPixels) -> None: ...

    def picture(self, request_id: str, content_hash: str) -> Picture: ...


class TorchInstances:
    """A `Backend`. `templates`: settings of each instance by name, without addresses. Every method but `close` and those of
    the reader thread is called under the driver's lock, so the sockets have one user at a time."""

    def __init__(
        self,
        templates: Mapping[str, InstanceSettings],
        clock: Clock,
        clients: Clients,
        on_failed_start: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._clients = clients
        self._on_failed_start = on_failed_start
        self._folders = RunFolders.make()
        self._context = zmq.Context()
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.set(zmq.RCVHWM, 0)
        self._address = f"ipc://{self._folders.run}/server.sock"
        self._inbox.bind(self._address)
        self._processes: dict[str, _Process] = {}
        self._lock = threading.Lock()  # of `_processes`
        self._closing = False
        self._generation = dict.fromkeys(templates, 0)
        self._nursery = _forkserver()
        self._reader = threading.Thread(target=self._read, name="instances", daemon=True)
        self._reader.start()
        threading.Thread(target=self._watch, name="forkserver", daemon=True).start()
        for slot, settings in templates.items():
            self._start(slot, settings, FIRST_PAUSE_S)

    # --- processes

    @property
    def folders(self) -> RunFolders:
        return self._folders

    def pids(self) -> dict[str, int]:
        """Process ids of the instances by name."""
        with self._lock:
            return {name: process.pid for name, process in self._processes.items()}

    def hellos(self) -> dict[str, wire.Hello]:
        """What ready instances said of themselves."""
        with self._lock:
            return {name: each.hello for name, each in self._processes.items() if each.hello is not None}

    def _start(self, slot: str, template: InstanceSettings, pause_s: float) -> None:
        """A process for `slot`; each has a name of its own, so that words of a dead one are not taken for another's."""
        generation = self._generation[slot]
        self._generation[slot] += 1
        name = slot if not generation else f"{slot}~{generation}"
        settings = replace(
            template,
            name=name,
            run_dir=str(self._folders.run),
            shm_dir=str(self._folders.shm),
            server=self._address,
            endpoint=f"ipc://{self._folders.run}/{name}.sock",
        )
        log = self._folders.run / f"{name}.log"
        socket = self._context.socket(zmq.PUSH)
        socket.set(zmq.SNDHWM, 0)
        socket.set(zmq.LINGER, 0)
        socket.connect(settings.endpoint)
        process = _Process(slot, settings, 0, time.monotonic(), socket, pause_s, log)
        with self._lock:
            if self._closing:
                socket.close()
                return
            self._processes[name] = process
            order = msgspec.json.encode(forkserver.Order(settings, str(log)))
            assert self._nursery.stdin is not None
            with contextlib.suppress(BrokenPipeError):  # it has died: `_watch` begins another, with all instances
                self._nursery.stdin.write(order + b"\n")
                self._nursery.stdin.flush()

    def _watch(self) -> None:
        """Read what the fork server says; when it dies all its instances die with it, and all begin anew."""
        while True:
            assert self._nursery.stdout is not None
            for line in self._nursery.stdout:
                report = msgspec.json.decode(line, type=forkserver.Report)
                if report.started is not None:
                    with self._lock:
                        if process := self._processes.get(report.started.name):
                            process.pid = report.started.pid
                elif report.ended is not None:
                    self._ended(report.ended.name, report.ended.status)
            with self._lock:
                if self._closing:
                    return
                lost = list(self._processes)
                self._nursery = _forkserver()
            for name in lost:
                self._ended(name, -9)

    def _ended(self, name: str, status: int) -> None:
        with self._lock:
            process = self._processes.pop(name, None)
            if process is None:
                return
            process.gone.set()
            if self._closing:
                return
        sweep(self._folders.shm, name)
        said = _last_line(process.log)
        ended = f"signal {-status}" if status < 0 else f"exit code {status}"
        self._clock.post(InstanceLost(name, f"its process ended with {ended}" + (f": {said}" if said else "")))
        if process.hello is None and status == 2:  # it cannot be started as it is told to
            self._on_failed_start(said)
            return
        lived = time.monotonic() - process.started_s
        pause = FIRST_PAUSE_S if lived > STEADY_S else min(process.pause_s * 2, LONGEST_PAUSE_S)
        timer = threading.Timer(pause, self._start, (process.slot, process.settings, pause))
        timer.daemon = True
        timer.start()

    def _read(self) -> None:
        while not isinstance(message := wire.decode(self._inbox.recv_multipart()), wire.Stop):
            if isinstance(message, wire.Hello):
                self._joined(message)
            elif isinstance(message, wire.Tells):
                for said, logprobs in wire.unpack_tells(message):
                    self._clock.post(InstanceSaid(message.name, said, logprobs))

    def _joined(self, hello: wire.Hello) -> None:
        with self._lock:
            process = self._processes.get(hello.name)
            if process is None:
                return  # it has died since
            process.hello = hello
        self._clock.post(InstanceJoined(hello.name, hello.roles))

    # --- actions

    def execute(self, action: object) -> None:
        """Carry an action out; what is meant for an instance that has died is dropped, for the scheduler will hear of it."""
        match action:
            case Answer():
                self._clients.answer(action)
            case AskPixels():
                self._clients.ask_pixels(action)
            case QueueAttempt():
                self._send(action.instance, RequestQueued(action.request, action.expected))
            case EncodeOn():
                self._encode(action)
            case CancelAttempt():
                self._send(action.instance, RequestCancelled(action.attempt))
            case MoveAttempt():
                self._introduce(action.instance, action.to)
                self._send(action.instance, MoveAsked(action.attempt, action.to))
            case SetRoles():
                self._send(action.instance, RolesSet(action.roles))
            case NotifyLost():
                self._send(action.instance, PeerLost(action.lost))

    def _encode(self, action: EncodeOn) -> None:
        frames: list[bytes] = []
        if action.pixels_of:
            picture = self._clients.picture(action.pixels_of, action.content_hash)
            frames = [msgspec.msgpack.encode((picture.width, picture.height)), picture.rgb]
        if action.to != action.instance:
            self._introduce(action.instance, action.to)
        self._send(action.instance, EncodeAsked(action.content_hash, action.to), frames)

    def _introduce(self, one: str, other: str) -> None:
        """Two instances that will talk to each other know each other's address; said again it does no harm."""
        for name, peer in ((one, other), (other, one)):
            process = self._processes.get(peer)
            if process is not None:
                self._send(name, wire.PeerJoined(peer, process.settings.endpoint))

    def _send(
        self, name: str, message: InstanceEvent | wire.PeerJoined | wire.Stop, more: list[bytes] | None = None
    ) -> None:
        process = self._processes.get(name)
        if process is not None:
            process.socket.send_multipart([*wire.encode(message), *(more or [])], copy=not more)

    def close(self) -> None:
        """End all processes and remove the run's folders."""
        with self._lock:
            self._closing = True
            processes = list(self._processes.values())
        for process in processes:
            process.socket.send_multipart(wire.encode(wire.Stop()))
        deadline = time.monotonic() + STOP_S
        for process in processes:
            if not process.gone.wait(max(0.0, deadline - time.monotonic())) and process.pid:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
        assert self._nursery.stdin is not None
        self._nursery.stdin.close()
        self._nursery.wait()
        to_reader = self._context.socket(zmq.PUSH)
        to_reader.connect(self._address)
        to_reader.send_multipart(wire.encode(wire.Stop()))
        self._reader.join()
        self._context.destroy(linger=0)
        self._folders.remove()


def _forkserver() -> subprocess.Popen[bytes]:
    # Threads of several lanes and processes share the cores: one that waits must not spin on them.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-P", "-m", "tierline.engine.forkserver"]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)


def _last_line(log: Path) -> str:
    """The last line that a process has printed, at most 400 characters."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1][-400:] if lines else ""
