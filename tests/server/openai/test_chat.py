"""Chat completions: whole answers and streams, as clients read them."""

from __future__ import annotations

import pytest

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
