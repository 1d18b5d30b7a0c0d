"""A client that streams many answers at once: HTTP/1.1 over asyncio, kept connections, nothing parsed that need not be.

Made for load: general clients need a millisecond of CPU a request and more a chunk, and would be what is measured.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from tierline.core.errors import InvalidInput, MissingExtra

IDLE_S = 2.5  # vLLM closes idle connections after 5 s; one that is closed just as it is used is an error
CONNECT_S = 10.0


class Sink(Protocol):
    """Who asked. All calls come from the event loop, `ended` exactly once and last."""

    def begun(self, status: int) -> None:
        """The headers have come."""
        ...

    def body(self, data: bytes, now_ns: int) -> None: ...

    def ended(self, error: str, now_ns: int) -> None:
        """'' = the whole answer came; else what went wrong: `connection`, `broken`, `timeout`."""
        ...


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is. `path` begins every request's path and has no slash at its end."""

    host: str
    port: int
    tls: bool
    path: str

    @classmethod
    def parse(cls, url: str) -> Address:
        """`http://host:8000`, with or without /v1 at its end. Raises InvalidInput."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port = None, None
        if host is None or parts.scheme not in ("http", "https") or parts.query or parts.fragment:
            raise InvalidInput(f"'{url}' is no address of a server: http://127.0.0.1:8000 is one.")
        tls = parts.scheme == "https"
        return cls(host, port or (443 if tls else 80), tls, parts.path.rstrip("/").removesuffix("/v1"))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}{self.path}"


class Client:
    """Connections to one server. `opened` counts them."""

    def __init__(self, address: Address, headers: dict[str, str]) -> None:
        try:
            import httptools
        except ImportError as error:
            raise MissingExtra("sending load", "serve") from error
        self._parser = httptools.HttpResponseParser
        self._parse_error = httptools.HttpParserError
        self.address = address
        lines = [f"host: {address.host}:{address.port}", *(f"{name}: {value}" for name, value in headers.items())]
        self._head = "".join(f"{line}\r\n" for line in lines).encode()
        self._tls = ssl.create_default_context() if address.tls else None
        self._idle: deque[_Connection] = deque()
        self._open: set[_Connection] = set()
        self._tasks: set[asyncio.Future[None]] = set()
        self.opened = 0

    def message(self, method: str, path: str, body: bytes) -> list[bytes]:
        """A request as the pieces to be written."""
        head = f"{method} {self.address.path}{path} HTTP/1.1\r\n".encode() + self._head
        kind = b"content-type: application/json\r\n" if body else b""
        return [head + kind + b"content-length: %d\r\n\r\n" % len(body), body]

    def send(self, message: list[bytes], sink: Sink, timeout_s: float) -> None:
        """Send now; `sink` hears the rest. A kept connection that turns out to be closed is replaced once."""
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed and time.monotonic() - connection.idle_since_s < IDLE_S:
                connection.ask(message, sink, timeout_s, kept=True)
                return
            connection.close()
        self.send_anew(message, sink, timeout_s)

    def send_anew(self, message: list[bytes], sink: Sink, timeout_s: float) -> None:
        """The same over a new connection."""
        self._tasks.add(task := asyncio.ensure_future(self._connect(message, sink, timeout_s)))
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, message: list[bytes], sink: Sink, timeout_s: float) -> None:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(min(CONNECT_S, timeout_s)):
                _, connection = await loop.create_connection(
                    lambda: _Connection(self), self.address.host, self.address.port, ssl=self._tls
                )
        except (OSError, TimeoutError):
            sink.ended("connection", time.monotonic_ns())
            return
        self.opened += 1
        connection.ask(message, sink, timeout_s, kept=False)

    async def get(self, method: str, path: str, body: bytes = b"", timeout_s: float = 60.0) -> tuple[int, bytes]:
        """One whole answer: (status, body). Raises ConnectionError with a word for the reason."""
        whole = _Whole(asyncio.get_running_loop().create_future())
        self.send(self.message(method, path, body), whole, timeout_s)
        error = await whole.done
        if error:
            raise ConnectionError(error)
        return whole.status, bytes(whole.data)

    async def aclose(self) -> None:
        """Close every connection, also those being made."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in list(self._open):
            connection.close()
        await asyncio.sleep(0)  # transports close in the loop's next turn


class _Whole:
    """Collects an answer."""

    def __init__(self, done: asyncio.Future[str]) -> None:
        self.done = done
        self.status = 0
        self.data = bytearray()

    def begun(self, status: int) -> None:
        self.status = status

    def body(self, data: bytes, now_ns: int) -> None:
        self.data += data

    def ended(self, error: str, now_ns: int) -> None:
        if not self.done.done():
            self.done.set_result(error)


class _Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._transport: asyncio.Transport | None = None
        self._sink: Sink | None = None
        self._parser: Any = None
        self._message: list[bytes] = []
        self._retry = False
        self._timeout: asyncio.TimerHandle | None = None
        self._timeout_s = 0.0
        self.idle_since_s = 0.0
        self.closed = False

    def ask(self, message: list[bytes], sink: Sink, timeout_s: float, *, kept: bool) -> None:
        assert self._transport is not None and self._sink is None
        self._sink, self._message, self._retry, self._timeout_s = sink, message, kept, timeout_s
        self._parser = self._client._parser(self)
        self._timeout = asyncio.get_running_loop().call_later(timeout_s, self._too_late)
        self._transport.writelines(message)

    def close(self) -> None:
        self.closed = True
        if self._transport is not None:
            self._transport.abort()

    # ---- asyncio's calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is no subclass of it
        self._client._open.add(self)

    def data_received(self, data: bytes) -> None:
        if self._sink is None:
            self.close()  # nobody asked
            return
        self._retry = False
        try:
            self._parser.feed_data(data)
        except self._client._parse_error:
            self._end("broken")
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        by_us, self.closed = self.closed, True
        self._client._open.discard(self)
        if self._sink is None:
            return
        if self._retry and not by_us:
            sink, self._sink = self._sink, None
            self._stop_timer()
            self._client.send_anew(self._message, sink, self._timeout_s)
            return
        self._end("broken")

    # ---- the parser's calls

    def on_headers_complete(self) -> None:
        assert self._sink is not None
        self._sink.begun(self._parser.get_status_code())

    def on_body(self, data: bytes) -> None:
        assert self._sink is not None
        self._sink.body(data, time.monotonic_ns())

    def on_message_complete(self) -> None:
        keep = self._parser.should_keep_alive()
        self._end("")
        if keep:
            self.idle_since_s = time.monotonic()
            self._client._idle.append(self)
        else:
            self.close()

    # ---- ends

    def _too_late(self) -> None:
        self._retry = False
        self._end("timeout")
        self.close()

    def _stop_timer(self) -> None:
        if self._timeout is not None:
            self._timeout.cancel()
            self._timeout = None

    def _end(self, error: str) -> None:
        self._stop_timer()
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.ended(error, time.monotonic_ns())
