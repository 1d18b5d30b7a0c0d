"""Who asks, and whether they may: the gate before the API.

Over the Unix socket (mode 0600, in a folder of mode 0700) only the owner of the daemon comes through: the
administrator. Over TCP everybody needs a token. A browser on this machine can reach TCP ports and carries its owner's
trust to pages that do not deserve it, hence: `Host` must name us (a rebound DNS name does not), and an `Origin`, which
only browsers send, must be the very address that is asked. Jobs of every token's user run with the rights of the
daemon's owner: give tokens only to people whom you would let use that account.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import os
import re
import secrets
import socket
import stat
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from starlette.exceptions import HTTPException

from tierline.core.errors import InvalidInput
from tierline.server.schemas import ID_PATTERN

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES = 32 * 1024 * 1024
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks. `admin`: may act for others and set shares."""

    user: str
    admin: bool


class TokenEntry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    token: str
    user: str
    admin: bool = False


class Tokens:
    """The file `tokens.json` (0600): a list of {token, user, admin}. Read again whenever it changes."""

    def __init__(self, path: Path) -> None:
        """Raises `InvalidInput` when the file cannot be used, or could be read by others."""
        self._path = path
        self._stamp: tuple[int, int, int] = (0, 0, 0)
        self._entries: list[tuple[bytes, Principal]] = []
        self._refresh()

    def find(self, token: str) -> Principal | None:
        """The token's owner; takes the same time wherever and whether it matches."""
        self._refresh()
        given, found = _digest(token), None
        for digest, principal in self._entries:
            if hmac.compare_digest(digest, given):
                found = principal
        return found

    def _refresh(self) -> None:
        try:
            status = self._path.stat()
        except OSError as error:
            raise InvalidInput(f"The token file '{self._path}' cannot be read: {error.strerror}.") from error
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp != self._stamp:
            if stat.S_IMODE(status.st_mode) & 0o077:
                raise InvalidInput(f"The token file '{self._path}' can be read by others: chmod 600 it.")
            self._entries = [(_digest(entry.token), Principal(entry.user, entry.admin)) for entry in _read(self._path)]
            self._stamp = stamp


def ensure_tokens(path: Path, user: str) -> None:
    """Create the token file with one token, no administrator's, for `user`, unless it exists. Further ones are added
    with an editor."""
    if path.exists():
        return
    entry = TokenEntry(secrets.token_urlsafe(TOKEN_BYTES), user, admin=False)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "w", encoding="utf-8") as file:
        json.dump([msgspec.to_builtins(entry)], file, indent=1)
    os.replace(partial, path)


def _read(path: Path) -> list[TokenEntry]:
    try:
        entries = msgspec.json.decode(path.read_bytes(), type=list[TokenEntry])
    except OSError as error:
        raise InvalidInput(f"The token file '{path}' cannot be read: {error.strerror}.") from error
    except msgspec.DecodeError as error:
        raise InvalidInput(f"The token file '{path}' must be a list of token, user, admin: {error}.") from error
    for entry in entries:
        if len(entry.token) < 16:
            raise InvalidInput(
                f"The token file '{path}' holds a token of {len(entry.token)} characters; 16 are needed."
            )
        if not re.match(ID_PATTERN, entry.user):
            raise InvalidInput(f"The token file '{path}' names the user '{entry.user}', which is no user name.")
    return entries


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()


class Gate:
    """ASGI middleware for one listener. With `tokens` None the caller is `owner` (the Unix socket).

    Answers 403 for a foreign Host or Origin, 401 without a good token, 413 for a body above `max_body_bytes`; else the
    request goes on with `scope["state"]["principal"]`.
    """

    def __init__(
        self,
        app: App,
        *,
        owner: Principal,
        tokens: Tokens | None,
        hosts: frozenset[str],
        max_body_bytes: int = MAX_BODY_BYTES,
    ) -> None:
        self._app = app
        self._owner = owner
        self._tokens = tokens
        self._hosts = hosts
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # neither lifespan nor websockets: the daemon offers none
        headers: dict[str, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name.decode("latin-1").lower(), []).append(value.decode("latin-1"))
        refusal, principal = self._judge(headers)
        if principal is None:
            await _answer(send, *refusal)
            return
        scope.setdefault("state", {})["principal"] = principal
        await self._app(scope, _limited(receive, self._max_body_bytes), send)

    def _judge(self, headers: dict[str, list[str]]) -> tuple[tuple[int, str, str], Principal | None]:
        hosts = headers.get("host", [])
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return (403, "Refused", f"The Host '{', '.join(hosts)[:100]}' is not this daemon."), None
        for origin in headers.get("origin", []):
            if origin not in (f"http://{hosts[0]}", f"https://{hosts[0]}"):
                return (403, "Refused", f"Requests from the page '{origin[:100]}' are not accepted."), None
        length = headers.get("content-length", ["0"])[0]
        if length.isdecimal() and int(length) > self._max_body_bytes:
            return (413, "InvalidInput", f"The request has {length} bytes; {self._max_body_bytes} are allowed."), None
        if self._tokens is None:
            return _NO_REFUSAL, self._owner
        try:
            given = headers.get("authorization", [])
            scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
            principal = self._tokens.find(token.strip()) if scheme.lower() == "bearer" and token else None
        except InvalidInput as error:
            return (403, "Refused", str(error)), None
        if principal is None:
            return (
                401,
                "Refused",
                "A token is needed: send 'Authorization: Bearer TOKEN' with one from tokens.json.",
            ), None
        return _NO_REFUSAL, principal

    def _is_ours(self, host: str) -> bool:
        name = _host_name(host)
        return name in self._hosts or (self._tokens is not None and _is_address(name))


_NO_REFUSAL = (0, "", "")


def tcp_hosts(listen_host: str, allowed: tuple[str, ...]) -> frozenset[str]:
    """The names under which the TCP address may be asked. Plain IP addresses are allowed besides: no name can be
    rebound to become one."""
    full = socket.gethostname().lower()
    return frozenset({"localhost", listen_host.lower(), full, full.split(".")[0], *(name.lower() for name in allowed)})


UNIX_HOSTS = frozenset({"tierline", "localhost"})


def _host_name(host: str) -> str:
    """`Host` without its port, lower case, without the brackets of an IPv6 address."""
    host = host.strip().lower()
    if host.startswith("["):
        name, bracket, _ = host[1:].partition("]")
        return name if bracket else ""
    return host.rpartition(":")[0] if host.count(":") == 1 else host


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _limited(receive: Receive, limit: int) -> Receive:
    """Counts what really comes, for bodies without a true Content-Length."""
    taken = 0

    async def limited() -> Message:
        nonlocal taken
        message = await receive()
        taken += len(message.get("body", b""))
        if taken > limit:
            raise HTTPException(413, f"the request has more than the {limit} bytes that are allowed")
        return message

    return limited


async def _answer(send: Send, status: int, kind: str, message: str) -> None:
    body = json.dumps({"error": {"type": kind, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
