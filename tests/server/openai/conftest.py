"""A front door over the instant generator, in this process."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import httpx
import pytest

from tierline.core.serving_contracts import ModelText
from tierline.server.openai import FrontOptions, create_app
from tierline.testing.front_door import Live
from tierline.testing.instant import ByteText, InstantGenerator


class Door:
    """`post` and `events` ask an application over ASGI, without a network."""

    def __init__(self, generator: InstantGenerator, text: ModelText, options: FrontOptions, **more: Any) -> None:
        self.generator = generator
        self.app = create_app(text, generator, options, **more)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app)
        async with (
            self.app.router.lifespan_context(self.app),
            httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
        ):
            yield client


def chat(content: Any = "hello", **more: Any) -> dict[str, Any]:
    return {"model": "instant", "messages": [{"role": "user", "content": content}], **more}


def events(text: str) -> list[Any]:
    """The JSON of a stream's events; the last is the string "[DONE]"."""
    assert text.endswith("data: [DONE]\n\n")
    lines = [part for part in text.split("\n\n") if part]
    assert all(line.startswith("data: ") and "\n" not in line for line in lines)
    return [*(json.loads(line[6:]) for line in lines[:-1]), lines[-1][6:]]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def generator() -> Iterator[InstantGenerator]:
    return InstantGenerator()


def wait_until(what: Callable[[], object], timeout_s: float = 20) -> None:
    """Patience, not a measurement: fails only where it never comes true."""
    deadline = time.monotonic() + timeout_s
    while not what():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


@pytest.fixture
def live(generator: InstantGenerator) -> Iterator[Live]:
    with Live(generator, ByteText(), FrontOptions()) as server:
        yield server
