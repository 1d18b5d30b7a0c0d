"""One exchange at the level of ASGI: clients that take nothing, cancellations from outside, threads that are full."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tierline.core.errors import Overloaded
from tierline.server.openai.errors import ApiError
from tierline.server.openai.threads import Threads
from tierline.server.openai.wire import ClientGone, Held, Hold, Message, Out, Watch

pytestmark = pytest.mark.anyio


async def test_a_client_that_takes_nothing_has_gone() -> None:
    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    out = Out(send, [], 0.05)
    with pytest.raises(ClientGone):
        await out.events(b"data: 1\n\n")


async def never() -> Message:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_watch_tells_why_its_task_was_ended() -> None:
    async def leaves() -> Message:
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        async with Watch(leaves):
            await asyncio.Event().wait()

    async def cut() -> None:
        async with Watch(never) as watch:
            asyncio.get_running_loop().call_soon(watch.cut, ApiError(503, "It has ended."))
            await asyncio.Event().wait()

    with pytest.raises(ApiError, match="ended"):
        await cut()
    with pytest.raises(KeyError):  # an error of its own comes through
        async with Watch(never):
            raise KeyError
    assert asyncio.current_task().cancelling() == 0  # type: ignore[union-attr]


async def test_a_cancellation_from_elsewhere_stays_one() -> None:
    async def watched() -> None:
        async with Watch(never):
            await asyncio.Event().wait()

    task = asyncio.create_task(watched())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_threads_refuse_what_is_too_much_and_drop_what_nobody_waits_for() -> None:
    threads, going, ran = Threads("test", 1, 1), threading.Event(), []
    first = asyncio.create_task(threads.run(going.wait))
    second = asyncio.create_task(threads.run(ran.append, 2))
    await asyncio.sleep(0)
    with pytest.raises(Overloaded):
        await threads.run(ran.append, 3)
    second.cancel()
    await asyncio.gather(second, return_exceptions=True)
    fourth = asyncio.create_task(threads.run(ran.append, 4))
    await asyncio.sleep(0)
    going.set()
    await asyncio.gather(first, fourth)
    threads.close()
    assert ran == [4]


def test_what_is_held_is_counted_and_given_back() -> None:
    held = Held(100)
    one, two = Hold(held), Hold(held)
    one.take(500)  # alone it may be larger than all
    with pytest.raises(ApiError) as caught:
        two.take(1)
    assert caught.value.status == 503
    one.give_all()
    two.take(60)
    two.give_all()
    two.give_all()
    assert held.taken == 0
