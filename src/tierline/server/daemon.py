"""One daemon's life: take the state folder, fold the state, adopt what runs, listen, and leave cleanly.

Order at the start: folder lock, listeners, fold, node, adoption, timers, driver thread, HTTP. Whatever fails before the
driver thread runs leaves nothing behind but what was there. At the end (SIGTERM, SIGINT, `tierline down`): HTTP first,
so that nobody is told "accepted" by a daemon that goes; then the driver thread, the backend (jobs go on under their
supervisors), a snapshot, the folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pwd
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec
import uvicorn

from tierline import __version__
from tierline.clock import WallClock
from tierline.config import (
    DaemonOptions,
    StatePaths,
    build_backend,
    build_recorded,
    build_scheduler,
    check_sharing,
    discover_node,
    hand_over,
    measured_pairs,
    parse_listen,
    policy_names,
    setting_of,
)
from tierline.core.errors import InvalidInput, StateUnusable, TierlineError
from tierline.core.events import NodeJoined, PairsMeasured, TimerFired
from tierline.core.nouns import Device, Node
from tierline.runtime.driver import Driver
from tierline.runtime.metrics import Measured, Measures
from tierline.runtime.replay import recover
from tierline.runtime.store import EventStore, holder
from tierline.schedulers.jobs import JobScheduler
from tierline.server.app import create_app
from tierline.server.auth import UNIX_HOSTS, App, Gate, Principal, Tokens, ensure_tokens, tcp_hosts
from tierline.server.services import Services

GRACE_FOR_REQUESTS_S = 3
BACKLOG = 128


class Daemon:
    """Build it, then `serve()` until it is told to end. Building raises `TierlineError` with one sentence."""

    def __init__(self, options: DaemonOptions) -> None:
        self._options = options
        self._paths = StatePaths(options.state)
        self._failure = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._servers: list[_Server] = []
        self._is_other_setting = False
        node = discover_node(options)
        build_scheduler(setting_of(options))  # an unknown policy is told before the folder is touched
        check_sharing(options)
        with contextlib.ExitStack() as undo:
            # What can be refused is refused before the folder is touched, but for a folder in use, which says more.
            self._tcp: socket.socket | None = None
            if holder(options.state) is None:
                check_place(self._paths.socket)
                self._tcp = self._open_tcp(undo)
            self._store = undo.enter_context(EventStore(options.state, snapshot_every=options.snapshot_every))
            self._unix = undo.enter_context(contextlib.closing(listen_unix(self._paths.socket)))
            self._tcp = self._tcp or self._open_tcp(undo)
            self.scheduler, self._clock = self._fold()
            self._measures = Measures()
            self._backend = build_backend(options, node, self._clock, self.scheduler.job)
            undo.callback(self._backend.close)
            measured = Measured(self.scheduler, self._measures)
            self._driver = Driver(measured, self._backend, self._clock, self._store)
            self._app = create_app(self._services(), self.fail)
            self._owner = Principal(owner_name(), admin=True)
            self._gates = self._make_gates()
            self._thread = threading.Thread(target=self._drive, name="driver", daemon=True)
            self._adopt(node)
            self._undo = undo.pop_all()

    def _open_tcp(self, undo: contextlib.ExitStack) -> socket.socket | None:
        """The TCP listener, closed with `undo`; None when none is asked for."""
        listen = self._options.listen
        return undo.enter_context(contextlib.closing(listen_tcp(listen))) if listen else None

    @property
    def tcp_address(self) -> tuple[str, int] | None:
        """Where it listens besides its Unix socket."""
        if self._tcp is None:
            return None
        host, port = self._tcp.getsockname()[:2]
        return host, port

    def serve(self) -> None:
        """Run until told to end. Raises `TierlineError` when the daemon had to end by itself."""
        try:
            self._thread.start()
            asyncio.run(self._serve())
        finally:
            self._clock.close()
            if self._thread.ident is not None:
                self._thread.join()
            # A request that outlived its server is turned away: it must not move the state under the last snapshot.
            self._driver.close("The daemon is ending; nothing was submitted.")
            if self._failure:
                self._store.abandon(self._failure)
            self._paths.socket.unlink(missing_ok=True)  # while the folder is ours: the next daemon makes its own
            self._undo.close()
        if self._failure:
            raise StateUnusable(self._failure)

    def fail(self, sentence: str) -> None:
        """End the daemon and have `serve` raise with this sentence. Callable from any thread."""
        self._failure = self._failure or sentence
        self.end()

    def end(self) -> None:
        """Ask the daemon to end cleanly. Callable from any thread."""
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended already
                loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        for server in self._servers:
            server.should_exit = True

    def _fold(self) -> tuple[JobScheduler, WallClock]:
        """The scheduler with its recovered state under the settings asked for, and a clock that goes on from it."""
        setting = msgspec.json.encode(setting_of(self._options)).decode()
        result = recover(self._store.table, build_recorded, hand_over)
        if result is None:
            scheduler = build_recorded(setting)
        elif result.setting == setting:
            scheduler = result.scheduler
        else:
            scheduler = hand_over(result.setting, result.scheduler, setting)
            self._is_other_setting = True
        clock = WallClock(not_before_ns=0 if result is None else result.last_time_ns)
        self._store.begin_run(clock.now_ns(), __version__, setting, scheduler.dump)
        return scheduler, clock

    def _adopt(self, node: Node) -> None:
        """Take up devices, attempts and timers where the last daemon left them."""
        attempts, timers = self.scheduler.attempts(), self.scheduler.pending_timers()
        self._backend.recover(attempts)
        self._backend.start()
        for timer in timers:
            # Not before what the backend has found: a round that is overdue must not use a device that others took.
            self._clock.post(TimerFired(timer.name), at_ns=max(timer.at_ns, self._clock.now_ns()))
        known = known_node(self.scheduler, node.name, self._clock.now_ns())
        if known != node or self._is_other_setting:  # another policy may want its timers: the event sets them
            self._driver.submit([NodeJoined(node)])
        pairs = measured_pairs(self._options, sorted({device.gpu_type for device in node.devices}))
        if not self.scheduler.knows(pairs):
            self._driver.submit([PairsMeasured(pairs)])

    def _drive(self) -> None:
        try:
            self._driver.run()
        except TierlineError as error:
            self.fail(str(error))
        except BaseException:
            self.fail(self._driver.closed)
            raise

    def _services(self) -> Services:
        return Services(
            driver=self._driver,
            scheduler=self.scheduler,
            clock=self._clock,
            table=self._store.table,
            measures=self._measures,
            log_path=self._backend.log_path,
            policies=policy_names(),
            policy=self._options.policy,
            state=self._options.state,
            version=__version__,
            pid=os.getpid(),
            started_ns=self._clock.now_ns(),
        )

    def _make_gates(self) -> list[tuple[App, socket.socket]]:
        gates: list[tuple[App, socket.socket]] = [
            (Gate(self._app, owner=self._owner, tokens=None, hosts=UNIX_HOSTS), self._unix)
        ]
        if self._tcp is not None:
            ensure_tokens(self._paths.tokens, self._owner.user)
            hosts = tcp_hosts(parse_listen(self._options.listen)[0], self._options.allowed_hosts)
            tokens = Tokens(self._paths.tokens)
            gates.append((Gate(self._app, owner=self._owner, tokens=tokens, hosts=hosts), self._tcp))
        return gates

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._leave)
        self._servers = [_Server(_uvicorn_config(gate)) for gate, _ in self._gates]
        if self._failure:
            return
        await asyncio.gather(
            *(server.serve(sockets=[end]) for server, (_, end) in zip(self._servers, self._gates, strict=True))
        )


class _Server(uvicorn.Server):
    """Several share one loop, so the daemon handles the signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _uvicorn_config(app: App) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=GRACE_FOR_REQUESTS_S,
    )


def owner_name() -> str:
    """The account the daemon runs under; its number where it has no name."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def known_node(scheduler: JobScheduler, name: str, now_ns: int) -> Node | None:
    """The node as the scheduler knows it; None when it does not."""
    devices = tuple(
        Device(device.device_id, device.gpu_type, device.memory_bytes)
        for device in scheduler.cluster(now_ns).devices
        if device.node == name
    )
    return Node(name, devices) if devices else None


def check_place(path: Path) -> None:
    """Raises `InvalidInput` when something lies where the daemon's socket belongs."""
    if path.exists() and not path.is_socket():
        raise InvalidInput(f"'{path}' is in the way: it is no socket, and the daemon's socket belongs there.")


def listen_unix(path: Path) -> socket.socket:
    """A listening socket that only our user can reach. The caller holds the state folder, so a socket that lies there
    already was left by a daemon that was killed."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.parent.chmod(0o700)
        check_place(path)
        path.unlink(missing_ok=True)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidInput(f"The socket '{path}' cannot be used: {error.strerror or error}.") from error
    except BaseException:
        listener.close()
        raise
    return listener


def listen_tcp(listen: str) -> socket.socket:
    """Raises `InvalidInput` when the address is in use or not ours."""
    host, port = parse_listen(listen)
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise InvalidInput(f"--listen {listen}: the host is not known ({error.strerror or error}).") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise InvalidInput(f"--listen {listen}: cannot listen there ({error.strerror or error}).") from error
    return listener
