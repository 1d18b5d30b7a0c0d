"""Chat completions: whole answers and streams, as clients read them."""

from __future__ import annotations

from typing import Any

import pytest

from tierline.core.errors import Overloaded
from tierline.core.request import Request, ServedModel
from tierline.server.openai import FrontOptions
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Door, chat, events

pytestmark = pytest.mark.anyio


@pytest.fixture
def door(generator: InstantGenerator) -> Door:
    generator.answer = list("Grüße".encode())
    return Door(generator, ByteText(), FrontOptions())


async def test_a_whole_answer(door: Door) -> None:
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=chat("hello"))
    assert answer.status_code == 200
    told = answer.json()
    assert told["object"] == "chat.completion"
    assert told["id"] == "chatcmpl-" + answer.headers["x-request-id"]
    assert told["model"] == "instant"
    (choice,) = told["choices"]
    assert choice["message"] == {"role": "assistant", "content": "Grüße", "refusal": None}
    assert (choice["finish_reason"], choice["logprobs"]) == ("stop", None)
    prompt = len("user: hello\nassistant: ")
    assert told["usage"] == {
        "prompt_tokens": prompt,
        "completion_tokens": 8,
        "total_tokens": prompt + 8,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


async def test_a_stream(door: Door) -> None:
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=chat(stream=True), headers={"x-request-id": "mine"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"] == "mine"
    *chunks, done = events(answer.text)
    assert done == "[DONE]"
    assert {chunk["id"] for chunk in chunks} == {"chatcmpl-mine"}
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in chunks)
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert "".join(delta["content"] for delta in deltas) == "Grüße"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]


async def test_usage_at_the_end_and_in_every_chunk(door: Door) -> None:
    asked = {"include_usage": True, "continuous_usage_stats": True}
    async with door.client() as client:
        ending = await client.post(
            "/v1/chat/completions", json=chat(stream=True, stream_options={"include_usage": True})
        )
        always = await client.post("/v1/chat/completions", json=chat(stream=True, stream_options=asked))
    *chunks, last, _ = events(ending.text)
    assert all("usage" not in chunk for chunk in chunks)
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 8
    counts = [chunk["usage"]["completion_tokens"] for chunk in events(always.text)[:-1]]
    assert counts == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]


async def test_several_choices_are_several_requests_with_seeds_of_their_own(door: Door) -> None:
    async with door.client() as client:
        whole = await client.post("/v1/chat/completions", json=chat(n=3, seed=7))
        again = await client.post("/v1/chat/completions", json=chat(n=2, seed=7))
        stream = await client.post(
            "/v1/chat/completions", json=chat(n=3, stream=True, stream_options={"include_usage": True})
        )
    told = whole.json()
    assert [choice["index"] for choice in told["choices"]] == [0, 1, 2]
    assert {choice["message"]["content"] for choice in told["choices"]} == {"Grüße"}
    assert (told["usage"]["prompt_tokens"], told["usage"]["completion_tokens"]) == (23, 24)
    assert len(again.json()["choices"]) == 2
    seeds = [request.sampling.seed for request, _ in door.generator.requests]
    assert seeds[0] == 7
    assert len(set(seeds[:3])) == 3
    assert seeds[3:5] == seeds[:2]
    assert len({request.request_id for request, _ in door.generator.requests}) == 8
    *chunks, usage, _ = events(stream.text)
    for index in range(3):
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == index]
        assert own[0]["delta"]["role"] == "assistant"
        assert "".join(choice["delta"]["content"] for choice in own) == "Grüße"
        assert own[-1]["finish_reason"] == "stop"
    assert usage["usage"]["completion_tokens"] == 24


async def test_everything_asked_for_reaches_the_generator(door: Door) -> None:
    asked = {
        "max_completion_tokens": 20, "max_tokens": 5, "min_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 40,
        "min_p": 0.1, "presence_penalty": 0.2, "frequency_penalty": -0.3, "repetition_penalty": 1.1, "seed": 42,
        "stop_token_ids": [255], "ignore_eos": True, "logit_bias": {"65": -100, "66": 1.5}, "priority": -3, "user": "me",
        "something_else": {"deep": [1, 2]}, "stop": None, "top_logprobs": 2, "logprobs": True, "store": False,
        "tools": [], "tool_choice": "none", "response_format": {"type": "text"},
    }  # fmt: skip
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=chat(**asked))
    assert answer.status_code == 200, answer.text
    ((request, _),) = door.generator.requests
    sampling = request.sampling
    assert (sampling.max_tokens, sampling.min_tokens, sampling.temperature, sampling.top_p) == (20, 3, 0.5, 0.9)
    assert (sampling.top_k, sampling.min_p, sampling.presence_penalty) == (40, 0.1, 0.2)
    assert (sampling.frequency_penalty, sampling.repetition_penalty, sampling.seed) == (-0.3, 1.1, 42)
    assert (sampling.stop_token_ids, sampling.ignore_eos, sampling.logprobs) == ((255,), True, 2)
    assert sampling.logit_bias == ((65, -100.0), (66, 1.5))
    assert request.priority == 3
    assert bytes(request.prompt) == b"user: hello\nassistant: "
    assert answer.json()["usage"]["completion_tokens"] == 20


async def test_what_is_not_said_comes_from_the_model(generator: InstantGenerator) -> None:
    model = ServedModel("instant", 100, False, 258, (256,), generation_defaults={"temperature": 0.0, "top_k": 20.0})
    door = Door(generator, ByteText(model), FrontOptions())
    async with door.client() as client:
        await client.post("/v1/chat/completions", json=chat())
        await client.post("/v1/chat/completions", json=chat(temperature=0.7, top_k=-1))
    first, second = (request.sampling for request, _ in generator.requests)
    assert (first.temperature, first.top_k, first.top_p) == (0.0, 20, 1.0)
    assert first.max_tokens == 100 - len("user: hello\nassistant: ")
    assert (second.temperature, second.top_k) == (0.7, 0)
    assert first.seed != second.seed


async def test_logprobs(door: Door) -> None:
    async with door.client() as client:
        whole = await client.post("/v1/chat/completions", json=chat(logprobs=True, top_logprobs=2, max_tokens=2))
        stream = await client.post("/v1/chat/completions", json=chat(logprobs=True, stream=True, max_tokens=4))
    first, second = whole.json()["choices"][0]["logprobs"]["content"]
    assert (first["token"], first["bytes"], first["logprob"]) == ("G", [71], -0.5)
    assert [other["token"] for other in first["top_logprobs"]] == ["G", "H"]
    assert second["bytes"] == [114]
    told = [chunk["choices"][0]["logprobs"] for chunk in events(stream.text)[1:-1]]
    assert [entry["bytes"] for each in told for entry in each["content"]] == [[71], [114], [0xC3], [0xBC]]
    assert told[0]["content"][0]["top_logprobs"] == []


@pytest.mark.parametrize(
    ("asked", "text", "tokens", "reason"),
    [
        ({"stop": "ße"}, "Grü", 7, "ße"),
        ({"stop": ["zz", "rü"]}, "G", 4, "rü"),
        ({"stop": "rü", "include_stop_str_in_output": True}, "Grü", 4, "rü"),
        ({"stop": "rü", "min_tokens": 6}, "Grüße", 8, None),
        ({"stop": "er"}, "Grüße", 8, None),
        ({"stop_token_ids": [ord("r")]}, "G", 2, ord("r")),
        ({"stop_token_ids": [ord("r")], "include_stop_str_in_output": True}, "Gr", 2, ord("r")),
    ],
)
async def test_stops(door: Door, asked: dict[str, Any], text: str, tokens: int, reason: object) -> None:
    async with door.client() as client:
        whole = (await client.post("/v1/chat/completions", json=chat(**asked))).json()
        stream = await client.post("/v1/chat/completions", json=chat(stream=True, n=2, **asked))
    (choice,) = whole["choices"]
    assert choice["message"]["content"] == text
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", reason)
    assert whole["usage"]["completion_tokens"] == tokens
    chunks = [chunk["choices"][0] for chunk in events(stream.text)[:-1]]
    for index in (0, 1):
        assert "".join(each["delta"]["content"] for each in chunks if each["index"] == index) == text
    is_cut = tokens < 8 and "stop" in asked
    assert len(door.generator.cancelled) == 3 * is_cut


async def test_several_tokens_in_one_message(door: Door) -> None:
    door.generator.chunk = 5
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=chat(stop="ü", stream=True))
    deltas = [chunk["choices"][0] for chunk in events(answer.text)[:-1]]
    assert [each["delta"]["content"] for each in deltas] == ["", "Gr"]
    assert deltas[-1]["finish_reason"] == "stop"


async def test_system_and_developer_are_one_role_and_an_answer_can_be_gone_on_with(door: Door) -> None:
    messages = [{"role": "developer", "content": "short"}, {"role": "user", "content": [{"type": "text", "text": "?"}]}]
    asked = {"messages": messages, "add_generation_prompt": False}
    async with door.client() as client:
        assert (await client.post("/v1/chat/completions", json=asked)).status_code == 200
    ((request, _),) = door.generator.requests
    assert bytes(request.prompt) == b"system: short\nuser: ?\n"


async def test_a_lost_request_is_an_error_before_the_first_token_and_an_event_after(door: Door) -> None:
    door.generator.lose_after = 0
    async with door.client() as client:
        before = await client.post("/v1/chat/completions", json=chat(stream=True))
        door.generator.lose_after = 2
        after = await client.post("/v1/chat/completions", json=chat(stream=True))
        whole = await client.post("/v1/chat/completions", json=chat())
    assert (before.status_code, before.json()["error"]["code"]) == (503, "request_lost")
    assert after.status_code == 200
    *chunks, error, done = events(after.text)
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == ["", "G", "r"]
    assert error["error"]["message"] == "The instance was lost and there is no other."
    assert done == "[DONE]"
    assert whole.status_code == 503


async def test_overload_says_when_to_come_back(door: Door) -> None:
    door.generator.fail = lambda request: Overloaded("17 requests wait already.", retry_after_s=2.5)
    async with door.client() as client:
        for stream in (False, True):
            answer = await client.post("/v1/chat/completions", json=chat(stream=stream, n=2))
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
            assert answer.json()["error"]["message"] == "17 requests wait already."


async def test_our_own_failure_says_nothing_of_its_inside(door: Door, caplog: pytest.LogCaptureFixture) -> None:
    def fail(request: Request) -> None:
        raise ValueError("a secret")

    door.generator.fail = fail
    async with door.client() as client:
        answer = await client.post("/v1/chat/completions", json=chat())
    assert (answer.status_code, answer.json()["error"]["code"]) == (500, "internal_error")
    assert "secret" not in answer.text
    assert "a secret" in caplog.text
