"""ASGI middleware before every route: request ids, foreign pages, API keys, rates, and the end of the server."""

from __future__ import annotations

import re
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

from tierline.server.openai.errors import ApiError
from tierline.server.openai.keys import Keys
from tierline.server.openai.wire import Message, Out, Receive, Scope, Send, Watch, header

App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/health", "/ping", "/version", "/metrics"})
_REQUEST_ID = re.compile(rb"[!-~]{1,128}")


class Front:
    """How the front door stands: whether it takes requests, and which answers are under way."""

    def __init__(self) -> None:
        self.draining = False
        self.drain_left_s = 0.0
        self.watches: set[Watch] = set()
        self.end: Callable[[], None] = lambda: None
        """Ends the server as a signal would; set while one runs, callable from any thread."""

    def drain(self, left_s: float) -> None:
        """From now on new requests are refused, and /health says so."""
        self.draining = True
        self.drain_left_s = left_s

    def refusal(self) -> ApiError:
        return ApiError(
            503,
            "The server is ending and takes no new requests.",
            "server_error",
            code="shutting_down",
            retry_after_s=max(1.0, self.drain_left_s),
        )

    def cut_all(self) -> None:
        """End the answers under way; their clients are told."""
        for watch in list(self.watches):
            watch.cut(ApiError(503, "The server has ended before the answer was complete.", "server_error", code="cut"))


class Gate:
    """Every answer carries X-Request-Id: the client's own where it is usable, else a new one."""

    def __init__(self, app: App, *, front: Front, keys: Keys, origins: tuple[str, ...]) -> None:
        self._app = app
        self._front = front
        self._keys = keys
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id") or b""
        request_id = given if _REQUEST_ID.fullmatch(given) else secrets.token_hex(16).encode()
        scope.setdefault("state", {})["request_id"] = request_id.decode()
        tag = (b"x-request-id", request_id)
        try:
            self._judge(scope)
        except ApiError as error:
            await Out(send, [tag], 60).error(error)
            return

        async def tagged(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), tag]
            await send(message)

        await self._app(scope, receive, tagged)

    def _judge(self, scope: Scope) -> None:
        path: str = scope["path"]
        if path in OPEN:
            return
        if self._keys:
            key = self._keys.find(_bearer(scope))
        else:
            # Without keys a page in a browser on this machine could ask for its visitor; only browsers send Origin.
            key = b""
            origin = header(scope, b"origin")
            if (
                origin is not None
                and origin not in self._origins
                and origin.partition(b"://")[2] != header(scope, b"host")
            ):
                raise ApiError(
                    403,
                    f"Requests from the page '{origin.decode('latin-1')[:100]}' are not accepted.",
                    "permission_error",
                )
        if scope["method"] == "POST":
            if self._front.draining:
                raise self._front.refusal()
            self._keys.pay(key)


def _bearer(scope: Scope) -> str:
    scheme, _, key = (header(scope, b"authorization") or b"").decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""


def state_of(scope: Scope) -> dict[str, Any]:
    state: dict[str, Any] = scope["state"]
    return state
