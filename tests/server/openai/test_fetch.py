"""Images behind URLs: what may be asked, and what must never be."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import httpcore
import pytest

from tierline.server.openai import FrontOptions, ImageLimits
from tierline.server.openai.errors import ApiError
from tierline.server.openai.fetch import Fetcher, is_public
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Door
from .test_images import GOOD, asking

pytestmark = pytest.mark.anyio

PUBLIC = "93.184.215.14"
NEVER = [
    "127.0.0.1", "127.8.9.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.0.0.8", "198.18.0.1", "192.0.2.1", "203.0.113.7", "::1", "::",
    "fe80::1", "fc00::1", "fd12::5", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1",
    "64:ff9b:1::1", "2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378::", "2001:db8::1", "fec0::1", "fe80::1%eth0",
    "no address", "",
]  # fmt: skip


@pytest.mark.parametrize("address", NEVER)
def test_addresses_that_are_never_asked(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_addresses_that_may_be_asked(address: str) -> None:
    assert is_public(address)


class Network(httpcore.AsyncNetworkBackend):
    """A network whose public addresses all lead to one server of ours."""

    def __init__(self, port: int) -> None:
        self._inner = httpcore.AnyIOBackend()
        self._port = port
        self.names: dict[str, list[str]] = {"good.example": [PUBLIC]}
        self.asked: list[str] = []
        self.connected: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        if host not in self.names:
            raise OSError("unknown")
        return self.names[host]

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        assert is_public(host)
        return await self._inner.connect_tcp("127.0.0.1", self._port, timeout)


Answers = dict[str, bytes | Callable[[asyncio.StreamWriter], Any]]


@contextlib.asynccontextmanager
async def web(answers: Answers) -> AsyncIterator[tuple[int, list[str]]]:
    """A web server on 127.0.0.1 that gives prepared bytes. Yields its port and the paths that were asked for."""
    asked: list[str] = []

    handlers: set[asyncio.Task[Any]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            asked.append(head.split(b" ")[1].decode())
            answer = answers.get(asked[-1], b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n")
            if callable(answer):
                await answer(writer)
            else:
                writer.write(answer)
            await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], asked
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


def ok(data: bytes, headers: bytes = b"") -> bytes:
    return b"HTTP/1.1 200 OK\r\n" + headers + b"content-length: %d\r\n\r\n" % len(data) + data


def to(place: str) -> bytes:
    return b"HTTP/1.1 302 Found\r\nlocation: " + place.encode() + b"\r\ncontent-length: 0\r\n\r\n"


LIMITS = ImageLimits(remote=True, max_bytes=1000, fetch_timeout_s=20)


@contextlib.asynccontextmanager
async def fetching(answers: Answers, limits: ImageLimits = LIMITS) -> AsyncIterator[tuple[Fetcher, Network, list[str]]]:
    async with web(answers) as (port, asked):
        network = Network(port)
        fetcher = Fetcher(limits, resolve=network.resolve, backend=network)
        try:
            yield fetcher, network, asked
        finally:
            await fetcher.aclose()


async def test_a_public_image_is_fetched_from_the_address_that_was_checked(generator: InstantGenerator) -> None:
    async with web({"/a.png?x=1": ok(GOOD)}) as (port, asked):
        network = Network(port)
        fetcher = Fetcher(ImageLimits(remote=True), resolve=network.resolve, backend=network)
        options = FrontOptions(images=ImageLimits(remote=True))
        door = Door(generator, ByteText(), options, fetcher=fetcher)
        async with door.client() as client:
            answer = await client.post("/v1/chat/completions", json=asking("http://good.example/a.png?x=1"))
    assert answer.status_code == 200, answer.text
    assert (asked, network.asked, network.connected) == (["/a.png?x=1"], ["good.example"], [PUBLIC])
    assert len(generator.requests[0][1]) == 1


async def test_a_name_with_one_private_address_among_public_ones_is_not_asked() -> None:
    async with fetching({"/": ok(GOOD)}) as (fetcher, network, asked):
        for address in ("127.0.0.1", "10.0.0.1", "::ffff:169.254.169.254"):
            network.names["mixed.example"] = [PUBLIC, address]
            with pytest.raises(ApiError, match="unknown, or not at a public address"):
                await fetcher.fetch("http://mixed.example/", "here")
        with pytest.raises(ApiError, match="unknown, or not at a public address"):
            await fetcher.fetch("http://nowhere.example/", "here")
    assert (network.connected, asked) == ([], [])


async def test_a_name_that_changes_its_address_is_asked_where_it_was_checked() -> None:
    async with fetching({"/": ok(GOOD)}) as (_, network, _):
        turns = [[PUBLIC], ["127.0.0.1"]]

        async def resolve(host: str, port: int) -> list[str]:
            return turns.pop(0)

        rebound = Fetcher(LIMITS, resolve=resolve, backend=network)
        assert await rebound.fetch("http://rebound.example/", "here") == GOOD
        assert (network.connected, turns) == ([PUBLIC], [["127.0.0.1"]])
        await rebound.aclose()


async def test_redirects_are_followed_three_times_and_checked_each_time() -> None:
    answers: Answers = {f"/{n}": to(f"/{n + 1}") for n in range(4)}
    answers |= {
        "/4": ok(GOOD),
        "/in": to("http://inner.example/x"),
        "/ip": to("http://127.0.0.1:22/"),
        "/file": to("file:///x"),
    }
    answers |= {"/loop": to("//good.example/loop"), "/user": to("http://a:b@good.example/4")}
    async with fetching(answers) as (fetcher, network, asked):
        network.names |= {"inner.example": ["192.168.0.1"], "127.0.0.1": ["127.0.0.1"]}
        assert await fetcher.fetch("http://good.example/1", "here") == GOOD
        asked.clear()
        for path, why in {
            "/0": "more than 3 times",
            "/loop": "more than 3 times",
            "/in": "not at a public address",
            "/ip": "not at a public address",
            "/file": "only http and https",
            "/user": "user name",
        }.items():
            with pytest.raises(ApiError, match=why):
                await fetcher.fetch(f"http://good.example{path}", "here")
    assert "192.168.0.1" not in network.connected
    assert asked.count("/loop") == 4


async def test_size_status_and_nonsense() -> None:
    async def endless(writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        while True:
            writer.write(b"100\r\n" + b"x" * 256 + b"\r\n")
            await writer.drain()

    answers: Answers = {
        "/long": ok(b"x" * 1001),
        "/endless": endless,
        "/404": b"HTTP/1.1 404 No\r\ncontent-length: 0\r\n\r\n",
        "/zip": ok(b"x", b"content-encoding: gzip\r\n"),
        "/junk": b"what?\r\n\r\n",
        "/cut": b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nshort",
    }
    async with fetching(answers) as (fetcher, _, _):
        for path, why in {
            "/long": "1001 bytes; 1000 are allowed",
            "/endless": "more than the 1000 bytes",
            "/404": "status 404",
            "/zip": "compressed",
            "/junk": "did not answer as it should",
            "/cut": "did not answer as it should",
        }.items():
            with pytest.raises(ApiError, match=why) as caught:
                await fetcher.fetch(f"http://good.example{path}", "here")
            assert (caught.value.status, caught.value.code) == (400, "invalid_image_url")
        for url in ("http://", "http://[::1", "http://good.example:99999/", "http://\x00/", "ftp://good.example/"):
            with pytest.raises(ApiError):
                await fetcher.fetch(url, "here")


async def test_a_host_that_never_answers_is_given_up() -> None:
    async def silent(writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    async with fetching({"/": silent}, ImageLimits(remote=True, fetch_timeout_s=0.2)) as (fetcher, _, _):
        with pytest.raises(ApiError, match=r"within 0\.2 s"):
            await fetcher.fetch("http://good.example/", "here")


async def test_hosts_can_be_named() -> None:
    async with fetching({"/": ok(GOOD)}, ImageLimits(remote=True, hosts=("other.example",))) as (fetcher, network, _):
        with pytest.raises(ApiError, match="not among those allowed"):
            await fetcher.fetch("http://good.example/", "here")
    assert network.asked == []


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "[::1]", "2130706433", "0x7f.1", "017700000001", "[::ffff:127.0.0.1]", "127.1"]
)
async def test_a_real_server_on_this_machine_is_never_asked(generator: InstantGenerator, host: str) -> None:
    """With the system's own resolver and sockets."""
    async with web({"/a.png": ok(GOOD)}) as (port, asked):
        door = Door(generator, ByteText(), FrontOptions(images=ImageLimits(remote=True)))
        async with door.client() as client:
            answer = await client.post("/v1/chat/completions", json=asking(f"http://{host}:{port}/a.png"))
    assert answer.status_code == 400
    assert answer.json()["error"]["code"] == "invalid_image_url"
    assert asked == []
