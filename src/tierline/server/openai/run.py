"""The front door on a port, with an end in good order.

SIGTERM or SIGINT: /health turns 503 and new requests are refused with 503 and Retry-After, while answers under way go on for
up to the grace period; those still unfinished then are ended and told so. A second signal ends at once.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import socket
import sys
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from tierline.core.errors import InvalidInput, Refused
from tierline.server.openai.gate import Front
from tierline.server.openai.options import FrontOptions

BACKLOG = 2048
CLOSE_S = 3
KEEP_ALIVE_S = 75
"""Longer than clients keep idle connections: one that is closed just as it is used is an error to them."""
POLL_S = 0.05
SWITCH_S = 0.001
"""How long a thread may keep the interpreter while another waits for it: the event loop shall not wait 5 ms."""


class Server(uvicorn.Server):
    """uvicorn's server; the first signal drains, the second ends."""

    def __init__(self, config: uvicorn.Config, front: Front, grace_s: float) -> None:
        super().__init__(config)
        self._front = front
        self._grace_s = grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._draining: asyncio.Task[None] | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._front.draining or self._loop is None:
            super().handle_exit(sig, frame)
        else:
            self._loop.call_soon_threadsafe(self.drain)

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = loop = asyncio.get_running_loop()

        def end() -> None:
            loop.call_soon_threadsafe(self.drain)

        self._front.end = end
        try:
            await super().serve(sockets)
        finally:
            self._front.end = lambda: None

    def drain(self) -> None:
        """Begin the end. On the event loop."""
        if self._draining is None:
            self._front.drain(self._grace_s)
            self._draining = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        assert self._loop is not None
        deadline = self._loop.time() + self._grace_s
        while self._front.watches and (left_s := deadline - self._loop.time()) > 0:
            self._front.drain(left_s)
            await asyncio.sleep(min(POLL_S, left_s))
        self._front.cut_all()
        self.should_exit = True


def check_listen(host: str, options: FrontOptions) -> None:
    """Raises `Refused` for an address that others reach while no key is asked for."""
    if not _is_loopback(host) and not options.api_keys and options.keys_file is None:
        raise Refused(f"Listening on '{host}' lets others in: give an API key or a keys file, or listen on 127.0.0.1.")


def run(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    sockets: list[socket.socket] | None = None,
    started: Callable[[str, int], None] | None = None,
) -> None:
    """Serve until a signal ends it. `port` 0 = a free one; `started` is told host and port once requests are taken.
    `sockets` are listened on instead where given. Raises `Refused` as `check_listen` does, `InvalidInput` when the address
    cannot be had."""
    asyncio_run = uvicorn.Config(app).get_loop_factory()
    with asyncio.Runner(loop_factory=asyncio_run) as runner:
        runner.run(serve(app, host, port, sockets=sockets, started=started))


async def serve(
    app: FastAPI,
    host: str = "127.0.0.1",
    port: int = 8000,
    *,
    sockets: list[socket.socket] | None = None,
    started: Callable[[str, int], None] | None = None,
) -> None:
    """`run` on an event loop that is there already."""
    options: FrontOptions = app.state.options
    if sockets is None:
        check_listen(host, options)
        sockets = [listen(host, port)]
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, backlog=BACKLOG, timeout_graceful_shutdown=CLOSE_S, lifespan="on",
        server_header=False, date_header=False, timeout_keep_alive=KEEP_ALIVE_S,
    )  # fmt: skip
    server = Server(config, app.state.front, options.grace_s)
    old_s = sys.getswitchinterval()
    sys.setswitchinterval(min(old_s, SWITCH_S))
    gc.collect()
    gc.freeze()  # what is there now stays: no collection need look at it again
    telling = asyncio.ensure_future(_tell(server, sockets[0], started))
    try:
        await server.serve(sockets)
    finally:
        telling.cancel()
        gc.unfreeze()
        sys.setswitchinterval(old_s)
    if not server.started:
        raise InvalidInput("The server could not begin; its log says why.")


async def _tell(server: Server, listener: socket.socket, started: Callable[[str, int], None] | None) -> None:
    host, port = listener.getsockname()[:2]
    while not server.started:
        await asyncio.sleep(0.01)
    if started is not None:
        started(host, port)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket's beginning: bound. Raises `InvalidInput`."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise InvalidInput(f"The address {host}:{port} cannot be listened on: {error.strerror}.") from error
    return listener


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
