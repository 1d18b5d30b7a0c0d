"""One HTTP exchange at the level of ASGI: the body in, an answer or server-sent events out, and a client that leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from types import TracebackType
from typing import Any

from tierline.server.openai.errors import JSON, ApiError, too_large

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

DISCARD_S = 5.0
EVENTS = [(b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no")]  # fmt: skip # noqa: E501
DONE = b"data: [DONE]\n\n"


class ClientGone(Exception):
    """The other end has closed the connection: there is nobody to tell."""


class Held:
    """Bytes of bodies and pixels that are in memory now, with a limit for all together."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = 0

    def take(self, size: int) -> None:
        """Raises `ApiError` (503) beyond the limit; an empty front door takes anything."""
        if self.taken and self.taken + size > self.limit:
            raise ApiError(
                503,
                f"The server holds {self.taken} bytes of other requests: {size} more would be above {self.limit}.",
                "overloaded_error",
                code="overloaded",
                retry_after_s=1,
            )
        self.taken += size

    def give(self, size: int) -> None:
        self.taken -= size


class Hold:
    """What one request has taken of `Held`; given back as a whole."""

    def __init__(self, held: Held) -> None:
        self._held = held
        self.size = 0

    def take(self, size: int) -> None:
        self._held.take(size)
        self.size += size

    def give_all(self) -> None:
        self._held.give(self.size)
        self.size = 0


def header(scope: Scope, name: bytes) -> bytes | None:
    return next((value for key, value in scope["headers"] if key == name), None)


async def read_body(scope: Scope, receive: Receive, limit: int, timeout_s: float, hold: Hold) -> bytes:
    """The whole body. Raises `ApiError` 413 above `limit` (counted, whatever Content-Length says), 408 when it takes
    too long; `ClientGone`."""
    length = header(scope, b"content-length")
    chunks: list[bytes] = []
    size = 0
    refusal = too_large(limit) if length is not None and length.isdigit() and int(length) > limit else None
    try:
        async with asyncio.timeout(timeout_s if refusal is None else DISCARD_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit and refusal is None:
                    refusal = too_large(limit)
                    chunks.clear()
                if size > 2 * limit:
                    break  # enough: whoever sends still more will see a closed connection
                if refusal is None:
                    hold.take(len(chunk))
                    chunks.append(chunk)
                if not message.get("more_body", False):
                    break
    except TimeoutError:
        refusal = refusal or ApiError(408, f"The request's body did not come within {timeout_s:g} s.", code="timeout")
    if refusal is not None:
        raise refusal
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class Out:
    """The answer's side of one exchange. A stream's headers go out with its first event, or when `start` is called."""

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]], timeout_s: float) -> None:
        self._send = send
        self._headers = headers
        self._timeout_s = timeout_s
        self.started = False

    async def start(self) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": EVENTS + self._headers})

    async def events(self, data: bytes) -> None:
        """Already framed events. Raises `ClientGone` when the client takes nothing for too long."""
        if not self.started:
            await self.start()
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError as error:
            raise ClientGone from error

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def json(self, body: bytes, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.started = True
        length = (b"content-length", str(len(body)).encode())
        found = [*(headers or [JSON]), length, *self._headers]
        await self._send({"type": "http.response.start", "status": status, "headers": found})
        await self._send({"type": "http.response.body", "body": body})

    async def error(self, error: ApiError) -> None:
        """As a status while that can be, else as an event, then `[DONE]`."""
        if self.started:
            await self.events(b"data: " + error.body() + b"\n\n" + DONE)
            await self.end()
        else:
            closing = [(b"connection", b"close")] if error.status in (408, 413) else []
            await self.json(error.body(), error.status, error.headers() + closing)


class Watch:
    """Within it the task is cancelled when the client leaves, or when `cut` is called because the server ends. That comes
    out as `ClientGone`, or as the error given to `cut`; a cancellation from elsewhere stays one."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._cause: Exception | None = None

    async def __aenter__(self) -> Watch:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._cancelling = task.cancelling()
        self._watcher = asyncio.create_task(self._until_gone())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watcher.cancel()
        cause, self._cause = self._cause, ClientGone()
        if cause is not None and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise cause from error

    def cut(self, error: Exception) -> None:
        if self._cause is None:
            self._cause = error
            self._task.cancel()

    async def _until_gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.cut(ClientGone())
