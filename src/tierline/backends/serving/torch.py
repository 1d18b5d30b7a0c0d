"""The built-in engine as a backend: one process an instance, messages over ZeroMQ in a private folder.

Actions become messages to instances, their words become events. A process that dies is an `InstanceLost`, and another is
started in its place after a pause that doubles with every death soon after a start.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import msgspec
import zmq

from tierline.backends.serving.folders import RunFolders
from tierline.backends.serving.nursery import FIRST_PAUSE_S, STOP_S, Host, next_pause_s, nurseries
from tierline.core.contracts import Clock
from tierline.core.errors import InvalidInput
from tierline.core.instance_events import (
    EncodeAsked,
    EncodeFailed,
    InstanceEvent,
    MoveAsked,
    PeerLost,
    RequestCancelled,
    RequestQueued,
    RolesSet,
    SleepAsked,
    WakeAsked,
)
from tierline.core.request import ALL_ROLES, Picture
from tierline.core.serving_actions import (
    Answer,
    AskPixels,
    CancelAttempt,
    EncodeOn,
    MoveAttempt,
    NotifyLost,
    QueueAttempt,
    SetRoles,
    SleepInstance,
    StartInstance,
    StopInstance,
    WakeInstance,
)
from tierline.core.serving_events import InstanceJoined, InstanceLost, InstanceSaid
from tierline.engine import wire
from tierline.engine.forkserver import Ended, Order, Started
from tierline.engine.settings import InstanceSettings
from tierline.engine.transfer import sweep
from tierline.schedulers.instance_images import EVICTED

log = logging.getLogger(__name__)
CANNOT_START = 2  # exit code of an instance that cannot be started as it is told to
END = "inproc://end"


@dataclass(slots=True)
class _Process:
    """`socket` is there once it has said that it is ready. `sleeps`: it was told to; nobody takes its place if it dies."""

    slot: str
    settings: InstanceSettings
    started_s: float
    pause_s: float
    log: Path
    pid: int = 0
    sleeps: bool = False
    hello: wire.Hello | None = None
    socket: zmq.Socket[bytes] | None = None
    gone: threading.Event = field(default_factory=threading.Event)


class Clients(Protocol):
    """Told what becomes of requests (`generator.Mailboxes`)."""

    def answer(self, action: Answer) -> None: ...

    def ask_pixels(self, action: AskPixels) -> None: ...

    def picture(self, request_id: str, content_hash: str) -> Picture | None: ...


class TorchInstances:
    """A `Backend`. `templates`: settings of each instance by name, without addresses.

    `hosts` name the instances that run elsewhere, and then `listen` is this host's address in their network: everything
    speaks TCP then, encrypted, among those who hold a key made for this run. The key goes to each host through the fork
    server's standard input, so through whatever `Host.command` is; nothing else opens a port.
    """

    def __init__(
        self,
        templates: Mapping[str, InstanceSettings],
        clock: Clock,
        clients: Clients,
        on_failed_start: Callable[[str], None],
        *,
        hosts: Mapping[str, Host] | None = None,
        listen: str = "",
    ) -> None:
        if not listen and any(host.address for host in (hosts or {}).values()):
            raise InvalidInput("instances on other hosts need an address of this host to connect to")
        if listen and any(template.transfer != "zmq" for template in templates.values()):
            raise InvalidInput("instances on several hosts need --transfer zmq")
        self._clock = clock
        self._clients = clients
        self._on_failed_start = on_failed_start
        self._listen = listen
        self._hosts = {slot: Host() for slot in templates} | dict(hosts or {})
        self._folders = RunFolders.make()
        self._context = zmq.Context()
        self._keys = wire.Keys.make() if listen else None
        self._guard = wire.admit_only(self._context, self._keys) if self._keys else None
        self._inbox = self._context.socket(zmq.PULL)
        self._inbox.set(zmq.RCVHWM, 0)
        if self._keys:
            self._keys.lock(self._inbox, server=True)
        self._inbox.bind(f"tcp://{listen}:*" if listen else f"ipc://{self._folders.run}/server.sock")
        self._address = self._inbox.get_string(zmq.LAST_ENDPOINT).rstrip("\0")
        self._inbox.bind(END)
        self._lock = threading.Lock()  # of all below and of the instances' sockets; events are posted in its order
        self._processes: dict[str, _Process] = {}
        self._closing = False
        self._generation = dict.fromkeys(templates, 0)
        self._templates = dict(templates)
        self._retired: set[str] = (
            set()
        )  # slots whose instance was told to end; none takes its place until one is asked for
        self._proven: set[str] = set()  # slots that were ready once, so their settings can be used
        self._met: set[tuple[str, str]] = set()  # pairs of instances that know each other
        self._reader = threading.Thread(target=self._read, name="instances", daemon=True)
        self._reader.start()
        self._nurseries = nurseries(self._hosts, self._folders.run, self._started, self._ended)
        for slot, settings in templates.items():
            self._start(slot, settings, FIRST_PAUSE_S)

    # --- processes

    @property
    def folders(self) -> RunFolders:
        return self._folders

    def pids(self) -> dict[str, int]:
        """Process ids of the instances by name; 0 for one that is about to be started."""
        with self._lock:
            return {name: process.pid for name, process in self._processes.items()}

    def fork_servers(self) -> tuple[int, ...]:
        """Their process ids."""
        return tuple(nursery.pid for nursery in self._nurseries.values())

    def hellos(self) -> dict[str, wire.Hello]:
        """What ready instances said of themselves."""
        with self._lock:
            return {name: each.hello for name, each in self._processes.items() if each.hello is not None}

    def _start(self, slot: str, template: InstanceSettings, pause_s: float) -> None:
        """A process for `slot`; each has a name of its own, so that words of a dead one are not taken for another's."""
        with self._lock:
            if self._closing:
                return
            generation = self._generation[slot]
            self._generation[slot] += 1
            name, host, run = _name(slot, generation), self._hosts[slot], self._folders.run
            settings = replace(
                template,
                name=name,
                run_dir=str(run),
                shm_dir=str(self._folders.shm),
                server=self._address,
                endpoint=f"tcp://{host.address or self._listen}:*" if self._listen else f"ipc://{run}/{name}.sock",
                curve_secret=self._keys.secret if self._keys else "",
                curve_public=self._keys.public if self._keys else "",
            )
            sweep(self._folders.shm, {*self._processes, name})
            if generation > 1:  # of the dead, the last one's log is kept
                (run / f"{_name(slot, generation - 2)}.log").unlink(missing_ok=True)
            process = _Process(slot, settings, time.monotonic(), pause_s, run / f"{name}.log")
            self._processes[name] = process
            self._nurseries[host].start(Order(settings, str(process.log)))

    def _started(self, started: Started) -> None:
        with self._lock:
            if process := self._processes.get(started.name):
                process.pid = started.pid

    def _ended(self, ended: Ended) -> None:
        with self._lock:
            process = self._processes.pop(ended.name, None)
            if process is None:
                return
            process.gone.set()
            if process.socket is not None:
                process.socket.close(linger=0)
            self._met = {pair for pair in self._met if ended.name not in pair}
            if self._closing:
                return
            if process.settings.endpoint.startswith("ipc://"):
                Path(process.settings.endpoint.removeprefix("ipc://")).unlink(missing_ok=True)
            sweep(self._folders.shm, set(self._processes))
            how = f"signal {-ended.status}" if ended.status < 0 else f"exit code {ended.status}"
            reason = f"its process ended with {how}" + (f": {ended.said}" if ended.said else "")
            if process.sleeps:
                self._retired.add(process.slot)
            retired = process.slot in self._retired
            told = retired and not process.sleeps
            self._clock.post(InstanceLost(ended.name, "it was told to end" if told else reason))
            if retired:
                return
            hopeless = ended.status == CANNOT_START and process.slot not in self._proven
        if hopeless:
            self._on_failed_start(ended.said)
            return
        pause_s = next_pause_s(process.pause_s, time.monotonic() - process.started_s)
        log.warning("Instance %s: %s; another is started in %.1f s.", ended.name, reason, pause_s)
        timer = threading.Timer(pause_s, self._start, (process.slot, process.settings, pause_s))
        timer.daemon = True
        timer.start()

    def _read(self) -> None:
        while True:
            frames = self._inbox.recv_multipart()
            try:
                message = wire.decode(frames)
                if isinstance(message, wire.Stop):
                    return
                if isinstance(message, wire.Hello):
                    self._joined(message)
                elif isinstance(message, wire.Tells):
                    for said, logprobs in wire.unpack_tells(message):
                        self._clock.post(InstanceSaid(message.name, said, logprobs))
            except (ValueError, IndexError, KeyError):
                log.exception("An instance's message cannot be read.")

    def _joined(self, hello: wire.Hello) -> None:
        with self._lock:
            process = self._processes.get(hello.name)
            if process is None or self._closing:
                return  # it has died since
            socket = process.socket = self._context.socket(zmq.PUSH)
            socket.set(zmq.SNDHWM, 0)
            socket.set(zmq.LINGER, 0)
            if self._keys:
                self._keys.lock(socket)
            socket.connect(hello.endpoint)
            process.hello = hello
            self._proven.add(process.slot)
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
            case StartInstance():
                self._start_one()
            case StopInstance():
                self._stop_one(action.instance)
            case SleepInstance():
                self._tell_sleep(action.instance, SleepAsked())
            case WakeInstance():
                self._tell_sleep(action.instance, WakeAsked(action.roles))

    def _start_one(self) -> None:
        """In a slot whose instance was told to end and has, or in a new one, set up as the first."""
        with self._lock:
            busy = {process.slot for process in self._processes.values()}
            free = [slot for slot in self._retired if slot not in busy]
            slot = min(free, default=f"i{len(self._templates)}")
            if slot not in self._templates:
                first = next(iter(self._templates))
                self._templates[slot] = replace(self._templates[first], name=slot, roles=ALL_ROLES)
                self._generation[slot], self._hosts[slot] = 0, self._hosts[first]
            self._retired.discard(slot)
            template = self._templates[slot]
        self._start(slot, template, FIRST_PAUSE_S)

    def _stop_one(self, name: str) -> None:
        with self._lock:
            process = self._processes.get(name)
            if process is not None:
                process.sleeps = False  # its end is then what was asked for
                self._retired.add(process.slot)
        self._send(name, wire.Stop())

    def _tell_sleep(self, name: str, message: SleepAsked | WakeAsked) -> None:
        with self._lock:
            if process := self._processes.get(name):
                process.sleeps = isinstance(message, SleepAsked)
        self._send(name, message)

    def _encode(self, action: EncodeOn) -> None:
        frames: list[bytes] = []
        if action.pixels_of:
            picture = self._clients.picture(action.pixels_of, action.content_hash)
            if picture is None:
                # That client has just gone. Whoever else waits for the image asks for it again, with pixels of its own.
                self._send(action.to, EncodeFailed(action.content_hash, EVICTED))
                return
            frames = [msgspec.msgpack.encode((picture.width, picture.height)), picture.rgb]
        if action.to != action.instance:
            self._introduce(action.instance, action.to)
        self._send(action.instance, EncodeAsked(action.content_hash, action.to), frames)

    def _introduce(self, one: str, other: str) -> None:
        """Two instances that will talk to each other know each other's address."""
        pair = (min(one, other), max(one, other))
        if pair in self._met:
            return
        hellos = self.hellos()
        if one in hellos and other in hellos:
            self._met.add(pair)
            for name, peer in ((one, other), (other, one)):
                self._send(name, wire.PeerJoined(peer, hellos[peer].endpoint))

    def _send(
        self, name: str, message: InstanceEvent | wire.PeerJoined | wire.Stop, more: list[bytes] | None = None
    ) -> None:
        """Never waits: a socket's queue has no limit but that on live requests."""
        with self._lock:
            process = self._processes.get(name)
            if process is not None and process.socket is not None:
                process.socket.send_multipart([*wire.encode(message), *(more or [])], copy=not more)

    def close(self) -> None:
        """End all processes and remove the run's folders."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            ready = {name: process for name, process in self._processes.items() if process.socket is not None}
        for name in ready:
            self._send(name, wire.Stop())
        deadline = time.monotonic() + STOP_S
        for process in ready.values():
            process.gone.wait(max(0.0, deadline - time.monotonic()))
        for nursery in self._nurseries.values():
            nursery.close()
        with contextlib.closing(self._context.socket(zmq.PUSH)) as to_reader:
            to_reader.connect(END)
            to_reader.send_multipart(wire.encode(wire.Stop()))
            self._reader.join()
        if self._guard is not None:
            self._guard.stop()
        self._context.destroy(linger=0)
        self._folders.remove()


def _name(slot: str, generation: int) -> str:
    return f"{slot}~{generation}" if generation else slot
