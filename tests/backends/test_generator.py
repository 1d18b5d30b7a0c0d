"""The generator where no instance is: requests wait a while, then are told to come back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from msgspec import structs

from tierline.backends.serving import generator as module
from tierline.backends.serving.generator import EngineGenerator, Mailboxes
from tierline.clock import WallClock
from tierline.core.errors import Overloaded, RequestLost
from tierline.core.instance_actions import TellTokens
from tierline.core.request import ALL_ROLES, Request, Sampling, TokensMade
from tierline.core.serving_actions import Answer, QueueAttempt
from tierline.core.serving_events import InstanceJoined, InstanceLost, InstanceSaid
from tierline.deployment import DeploymentOptions, build_scheduler
from tierline.runtime.driver import Driver

REQUEST = Request("x", (1, 2, 3), Sampling(4))


class Instances:
    """Answers every attempt with one token."""

    def __init__(self, clock: WallClock, mailboxes: Mailboxes) -> None:
        self.clock, self.mailboxes = clock, mailboxes

    def execute(self, action: object) -> None:
        match action:
            case QueueAttempt():
                told = TellTokens(action.request.request_id, 0, (7,), finish="stop")
                self.clock.post(InstanceSaid(action.instance, told))
            case Answer():
                self.mailboxes.answer(action)

    def close(self) -> None:
        pass


def deployed(**options: Any) -> tuple[EngineGenerator, WallClock]:
    clock, mailboxes = WallClock(), Mailboxes()
    instances = Instances(clock, mailboxes)
    scheduler = build_scheduler(DeploymentOptions(**options))
    driver = Driver(scheduler, instances, clock)
    return EngineGenerator(scheduler, cast(Any, instances), driver, mailboxes, clock.close), clock


async def ask(generator: EngineGenerator, request: Request = REQUEST) -> tuple[int, ...]:
    return tuple([token async for made in generator.generate(request, {}) for token in made.tokens])


def test_all_instances_lost_is_told_with_when_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 0.05)
    generator, clock = deployed()
    try:
        assert asyncio.run(generator.health()) == "No instance is ready yet."
        clock.post(InstanceJoined("i0", ALL_ROLES))
        assert asyncio.run(ask(generator)) == (7,)
        clock.post(InstanceLost("i0", "it was killed"))
        while not (ill := asyncio.run(generator.health())):
            pass
        assert ill == "All instances are lost; they are started again."
        with pytest.raises(Overloaded, match="No instance is there") as caught:
            asyncio.run(ask(generator))
        assert caught.value.retry_after_s == module.RETRY_S
        assert generator.live_ids() == ()
        clock.post(InstanceJoined("i0~1", ALL_ROLES))
        assert asyncio.run(ask_when_there(generator)) == (7,)
        assert asyncio.run(generator.health()) == ""
    finally:
        generator.close()


async def ask_when_there(generator: EngineGenerator) -> tuple[int, ...]:
    while await generator.health():
        await asyncio.sleep(0)
    return await ask(generator)


def test_requests_are_found_by_both_names_while_they_run_and_afterwards(caplog: pytest.LogCaptureFixture) -> None:
    generator, clock = deployed()
    named = structs.replace(REQUEST, client_id="abc")

    async def begun() -> None:
        stream = generator.generate(named, {})
        asking = asyncio.ensure_future(anext(stream))
        while not generator.live_ids():
            await asyncio.sleep(0)
        (found,) = generator.find("abc")
        assert (found["request_id"], found["stage"], found["end"]) == ("r1", "waits", "")
        assert found["prompt_tokens"] == 3 and found["first_s"] is None
        clock.post(InstanceJoined("i0", ALL_ROLES))
        assert (await asking).finish == "stop"
        await stream.aclose()

    try:
        asyncio.run(begun())
        (ended,) = generator.find("chatcmpl-abc")
        assert generator.find("r1")[0]["took_s"] == ended["took_s"]
        assert (ended["end"], ended["output_tokens"], ended["stage"]) == ("stop", 1, "")
        assert 0 < ended["first_s"] <= ended["took_s"] and generator.find("r2") == []
        generator._mailboxes.open = failing(generator._mailboxes)  # type: ignore[method-assign]
        with pytest.raises(RequestLost, match=r"^It was there when five died\.$"):
            asyncio.run(ask(generator, named))
        assert generator.find("abc")[-1]["end"] == "error"
        assert "Request r2 (abc): It was there when five died." in caplog.text
    finally:
        generator.close()


def failing(mailboxes: Mailboxes) -> Any:
    """Tells every client that its request is given up."""
    plain = mailboxes.open

    def opened(request_id: str, pictures: Any) -> Any:
        queue = plain(request_id, pictures)
        queue.put_nowait(TokensMade(request_id, 0, (), finish="error", reason="it was there when five died"))
        return queue

    return opened


def test_a_request_waits_for_the_replacement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PATIENCE_S", 3600.0)
    monkeypatch.setattr(module, "LOOKS", 3_600_000)
    generator, clock = deployed()

    async def both() -> tuple[int, ...]:
        asking = asyncio.create_task(ask(generator))
        while not generator.live_ids():
            await asyncio.sleep(0)
        clock.post(InstanceJoined("i0", ALL_ROLES))
        return await asking

    try:
        assert asyncio.run(both()) == (7,)
    finally:
        generator.close()


def test_scaled_to_zero_a_request_waits_for_the_instance_that_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    generator, _ = deployed()
    try:
        scheduler = generator._scheduler
        assert generator._is_empty()
        monkeypatch.setattr(scheduler, "elasticity", SimpleNamespace(max_instances=2, min_instances=0))
        assert not generator._is_empty()
    finally:
        generator.close()
