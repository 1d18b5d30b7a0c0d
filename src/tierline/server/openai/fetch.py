"""Images behind http(s) URLs, fetched from public addresses alone.

A URL is a request that somebody else makes in our name, from inside our network. So: the name is resolved once, every
address it has must be public, and the connection goes to such an address, never to what the name says a moment later.
Redirects are followed by us, each with the same checks, since they pass through the same door.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import httpcore
import httpx

from tierline import __version__
from tierline.core.errors import TierlineError
from tierline.server.openai.errors import ApiError, bad_request
from tierline.server.openai.options import ImageLimits

Resolve = Callable[[str, int], Awaitable[list[str]]]
REDIRECTS = frozenset({301, 302, 303, 307, 308})
HEADERS = [
    (b"user-agent", f"tierline/{__version__}".encode()),
    (b"accept", b"image/*"),
    (b"accept-encoding", b"identity"),
]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NEVER = tuple(
    ipaddress.ip_network(net)
    for net in ("::/96", "64:ff9b:1::/48", "100::/64", "2001::/23", "fec0::/10", "192.0.0.0/24")
)


class _NotPublic(TierlineError):
    """A host that must not be asked."""


def is_public(address: str) -> bool:
    """Whether anybody on the internet could have asked this address: neither private, loopback, link-local, multicast nor
    reserved, also where an IPv4 address is wrapped in an IPv6 one.

    >>> [is_public(a) for a in ("8.8.8.8", "127.0.0.1", "169.254.169.254", "::ffff:10.0.0.1", "2606:4700::1111")]
    [True, False, False, False, True]
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        wrapped = ip.ipv4_mapped or ip.sixtofour
        if wrapped is None and ip in _NAT64:
            wrapped = ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)
        if wrapped is not None:
            return is_public(str(wrapped))
    if any(ip.version == net.version and ip in net for net in _NEVER):
        return False
    special = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast or ip.is_reserved
    return ip.is_global and not special and not ip.is_unspecified


async def resolve(host: str, port: int) -> list[str]:
    """All addresses of a name, as the system gives them."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class CheckedBackend(httpcore.AsyncNetworkBackend):
    """Opens connections to checked addresses only, whatever name they are asked for."""

    def __init__(self, inner: httpcore.AsyncNetworkBackend, resolve: Resolve) -> None:
        self._inner = inner
        self._resolve = resolve

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            addresses = await self._resolve(host, port)
        except OSError:
            addresses = []
        if not addresses or not all(map(is_public, addresses)):  # one sentence for both: our DNS is nobody's business
            raise _NotPublic(f"the host '{host[:200]}' is unknown, or not at a public address")
        for address in addresses[:-1]:
            try:
                return await self._inner.connect_tcp(address, port, timeout, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                continue
        return await self._inner.connect_tcp(addresses[-1], port, timeout, local_address, socket_options)

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise _NotPublic("a socket of this machine is no public address")

    async def sleep(self, seconds: float) -> None:
        await self._inner.sleep(seconds)


class Fetcher:
    """Fetches files of limited size. `resolve` and `backend` stand in for the network in tests."""

    def __init__(
        self,
        limits: ImageLimits,
        *,
        resolve: Resolve = resolve,
        backend: httpcore.AsyncNetworkBackend | None = None,
        ssl_context: Any = None,
    ) -> None:
        self._limits = limits
        self._at_once = asyncio.Semaphore(limits.fetches)
        self._backend = CheckedBackend(backend or httpcore.AnyIOBackend(), resolve)
        self._ssl_context = ssl_context
        self._pool: httpcore.AsyncConnectionPool | None = None

    async def fetch(self, url: str, place: str) -> bytes:
        """The file at `url`. `place` names it in sentences. Raises `ApiError` (400)."""
        limit_s = self._limits.fetch_timeout_s
        try:
            async with asyncio.timeout(limit_s), self._at_once:
                return await self._follow(url)
        except TimeoutError:
            raise _failed(place, f"it did not come within {limit_s:g} s") from None
        except TierlineError as error:
            raise _failed(place, str(error)) from error
        except (httpx.InvalidURL, httpcore.UnsupportedProtocol, UnicodeError) as error:
            raise _failed(place, "its URL is none") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
            raise _failed(place, "its host did not answer as it should") from error

    async def aclose(self) -> None:
        if self._pool is not None:
            await self._pool.aclose()
            self._pool = None

    async def _follow(self, address: str) -> bytes:
        url = httpx.URL(address)
        for _ in range(self._limits.max_redirects + 1):
            self._check(url)
            answer = await self._get(url)
            if isinstance(answer, bytes):
                return answer
            url = url.join(answer)
        raise _NotPublic(f"it was redirected more than {self._limits.max_redirects} times")

    def _check(self, url: httpx.URL) -> None:
        if url.scheme not in ("http", "https") or not url.host:
            raise _NotPublic("only http and https are fetched")
        if url.port is not None and not 0 < url.port < 65536:
            raise _NotPublic("its port is none")
        if url.userinfo:
            raise _NotPublic("a URL with a user name is not fetched")
        if self._limits.hosts and url.host not in self._limits.hosts:
            raise _NotPublic(f"the host '{url.host[:200]}' is not among those allowed")

    async def _get(self, url: httpx.URL) -> bytes | str:
        """The file, or where it is said to be."""
        if self._pool is None:
            self._pool = httpcore.AsyncConnectionPool(
                ssl_context=self._ssl_context,
                network_backend=self._backend,
                max_connections=self._limits.fetches,
                keepalive_expiry=5,
            )
        target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path or b"/")
        async with self._pool.stream("GET", target, headers=HEADERS) as answer:
            found = {name.lower(): value for name, value in answer.headers}
            if answer.status in REDIRECTS and b"location" in found:
                return found[b"location"].decode("latin-1")
            if answer.status != 200:
                raise _NotPublic(f"its host answered with status {answer.status}")
            if found.get(b"content-encoding", b"identity") != b"identity":
                raise _NotPublic("its host sent it compressed")
            chunks, size, limit = [], 0, self._limits.max_bytes
            length = found.get(b"content-length", b"0")
            if length.isdigit() and int(length) > limit:
                raise _NotPublic(f"it has {int(length)} bytes; {limit} are allowed")
            async for chunk in answer.aiter_stream():
                size += len(chunk)
                if size > limit:
                    raise _NotPublic(f"it has more than the {limit} bytes that are allowed")
                chunks.append(chunk)
            return b"".join(chunks)


def _failed(place: str, why: str) -> ApiError:
    return bad_request(f"{place}: the image cannot be fetched: {why}.", "messages", "invalid_image_url")
