"""ASGI middleware before every route: request ids, foreign pages, API keys, rates, and the end of the server."""

from __future__ import annotations

import ipaddress
import re
import secrets
from collections.abc import Awaitable, Callable

from tierline.server.openai.errors import ApiError
from tierline.server.openai.keys import Keys
from tierline.server.openai.wire import Message, Out, Receive, Scope, Send, Watch, header

App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = frozenset({"/health", "/ping", "/version", "/metrics"})
_REQUEST_ID = re.compile(rb"[!-~]{1,512}")  # printable, without spaces; so many has OpenAI
_HOST = re.compile(r"(\[[0-9a-fA-F:.]+\]|[\w.-]+)(:\d{1,5})?")


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
    """Every answer carries X-Request-Id: the client's own (or its X-Client-Request-Id, as OpenAI's clients call it) where
    that is usable, else a new one."""

    def __init__(
        self, app: App, *, front: Front, keys: Keys, origins: tuple[str, ...], hosts: tuple[str, ...] = ()
    ) -> None:
        self._app = app
        self._front = front
        self._keys = keys
        self._origins = frozenset(origin.encode() for origin in origins)
        self._hosts = frozenset({"localhost", *(host.lower() for host in hosts)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = header(scope, b"x-request-id") or header(scope, b"x-client-request-id") or b""
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
            key = b""
            self._check_browser(scope)
        if scope["method"] == "POST":
            if self._front.draining:
                raise self._front.refusal()
            self._keys.pay(key)

    def _check_browser(self, scope: Scope) -> None:
        """Without keys a page in a browser on this machine could ask in its visitor's stead: as itself (only browsers send
        Origin), or under a name of its own that it has made to lead here. Raises `ApiError` 403."""
        host = (header(scope, b"host") or b"").decode("latin-1")
        found = _HOST.fullmatch(host)
        name = found[1].strip("[]").lower() if found else ""
        if name not in self._hosts and not _is_address(name):
            raise ApiError(403, f"The Host '{host[:100]}' is not this server.", "permission_error")
        origin = (header(scope, b"origin") or b"").decode("latin-1")
        if origin and origin.encode("latin-1") not in self._origins and origin.partition("://")[2] != host:
            raise ApiError(403, f"Requests from the page '{origin[:100]}' are not accepted.", "permission_error")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bearer(scope: Scope) -> str:
    scheme, _, key = (header(scope, b"authorization") or b"").decode("latin-1").partition(" ")
    return key.strip() if scheme.lower() == "bearer" else ""
