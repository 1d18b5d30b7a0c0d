"""An HTTP server in a thread that answers chat requests as a script says: for clients' tests, misbehaviour included."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Answer = bytes | None
"""What is written; None = the connection is closed without a word."""


def answer(body: bytes, status: int = 200, *, close: bool = False) -> bytes:
    """A whole answer of known length."""
    keep = "close" if close else "keep-alive"
    head = f"HTTP/1.1 {status} Said\r\nconnection: {keep}\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n" % len(body) + body


def error(status: int, message: str) -> bytes:
    return answer(
        json.dumps({"error": {"message": message, "type": "x", "param": None, "code": None}}).encode(), status
    )


def streamed(*events: bytes, end: bool = True) -> bytes:
    """A streamed answer of these events; without `end` it breaks off."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in events)
    return head + chunks + (b"0\r\n\r\n" if end else b"")


def event(told: Any) -> bytes:
    return b"data: " + (told.encode() if isinstance(told, str) else json.dumps(told).encode()) + b"\n\n"


def words(count: int, *, usage: tuple[int, int] | None = None, done: bool = True) -> list[bytes]:
    """The events of an answer of `count` words; `usage` = (prompt tokens, output tokens)."""
    opening = event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    found = [opening, *[event({"choices": [{"index": 0, "delta": {"content": " word"}}]})] * count]
    found.append(event({"choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]}))
    if usage is not None:
        found.append(event({"choices": [], "usage": {"prompt_tokens": usage[0], "completion_tokens": usage[1]}}))
    return [*found, event("[DONE]")] if done else found


def plain_count(body: dict[str, Any]) -> int:
    """Prompt tokens of a server with a token a word, ten around a message, and one a square of 32 x 32 px of a picture."""
    content = body["messages"][0]["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    text = sum(len(part["text"].split()) for part in parts if part["type"] == "text")
    return 10 + text + sum(width // 32 * (height // 32) for width, height in pixels(parts))


def pixels(parts: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """(width, height) of the PNG pictures among a message's parts."""
    from PIL import Image

    found = []
    for part in parts:
        if part["type"] == "image_url":
            head, _, data = part["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as image:
                image.load()
                found.append(image.size)
    return found


@dataclass
class Scripted:
    """`chat` answers a streamed chat request, given its body; `about` every other request, given method and path.
    `bodies` are the chat requests that came, `most` how many were unanswered at once, `connections` how many were made.
    `hold` answers wait until so many have come."""

    chat: Callable[[dict[str, Any]], Answer] = lambda body: streamed(*words(2, usage=(plain_count(body), 2)))
    count: Callable[[dict[str, Any]], int] = plain_count
    about: Callable[[str, str], Answer] = lambda method, path: error(404, "There is no such path.")
    takes: Callable[[dict[str, Any]], Answer] = lambda body: b""
    hold: int = 1
    delay_s: float = 0.0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    most: int = 0
    connections: int = 0
    url: str = ""

    def __enter__(self) -> Scripted:
        self._waiting = 0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))
        self._thread.start()
        self._ready.wait(30)
        assert self.url
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        assert not self._thread.is_alive()

    async def _serve(self) -> None:
        self._loop, self._stop, self._came = asyncio.get_running_loop(), asyncio.Event(), asyncio.Condition()
        self._writers: list[asyncio.StreamWriter] = []
        server = await asyncio.start_server(self._talk, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        await self._stop.wait()
        server.close()
        await _turns()  # connections just accepted begin: a task that never did would leave its socket open
        talks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in talks:
            task.cancel()
        await asyncio.gather(*talks, return_exceptions=True)
        await server.wait_closed()
        for writer in self._writers:
            writer.transport.abort()  # closed ones too: what a slow client has not read yet holds them open
        await _turns()  # the transports' own ends

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.append(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = next((int(x.split(":")[1]) for x in head.split("\r\n") if x.startswith("content-length")), 0)
                data = await reader.readexactly(length)
                self.heads.append(head)
                method, path, _ = head.split(" ", 2)
                said = await self._answered(method, path, data)
                if said is None:
                    break
                writer.write(said)
                await writer.drain()
                if b"chunked" in said[:200] and not said.endswith(b"0\r\n\r\n"):
                    break  # broken off
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _answered(self, method: str, path: str, data: bytes) -> Answer:
        if not path.endswith("/chat/completions"):
            said = self.about(method, path)
            if path.endswith("/models") and said is not None and b" 404 " in said[:20]:
                return answer(b'{"data": [{"id": "scripted"}]}')
            return said
        body = json.loads(data)
        refused = self.takes(body)
        if refused != b"":
            return refused
        if not body.get("stream"):
            usage = {"prompt_tokens": self.count(body), "completion_tokens": 1}
            return answer(json.dumps({"choices": [], "usage": usage}).encode())
        self.bodies.append(body)
        self._waiting += 1
        self.most = max(self.most, self._waiting)
        async with self._came:
            self._came.notify_all()
            await self._came.wait_for(lambda: len(self.bodies) >= self.hold)
        await asyncio.sleep(self.delay_s)
        self._waiting -= 1
        return self.chat(body)


async def _turns(count: int = 20) -> None:
    """So many turns of the event loop."""
    for _ in range(count):
        await asyncio.sleep(0)
