"""Text completions: every shape of prompt, and log-probabilities as of old."""

from __future__ import annotations

from typing import Any

import pytest

from tierline.server.openai import FrontOptions
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Door, events

pytestmark = pytest.mark.anyio


@pytest.fixture
def door(generator: InstantGenerator) -> Door:
    return Door(generator, ByteText(), FrontOptions(max_prompts=4))


@pytest.mark.parametrize(
    ("prompt", "texts"),
    [
        ("abc", ["abc"]),
        (["abc", "d"], ["abc", "d"]),
        ([97, 98], ["ab"]),
        ([[97], [98, 99]], ["a", "bc"]),
        (["x", [98]], ["x", "b"]),
    ],
)
async def test_prompts(door: Door, prompt: Any, texts: list[str]) -> None:
    async with door.client() as client:
        answer = await client.post("/v1/completions", json={"prompt": prompt})
        stream = await client.post(
            "/v1/completions", json={"prompt": prompt, "stream": True, "stream_options": {"include_usage": True}}
        )
    told = answer.json()
    assert told["object"] == "text_completion"
    assert told["id"].startswith("cmpl-")
    assert [(choice["index"], choice["text"]) for choice in told["choices"]] == list(enumerate(texts))
    assert told["usage"]["prompt_tokens"] == sum(map(len, texts))
    *chunks, usage, _ = events(stream.text)
    for index, text in enumerate(texts):
        assert "".join(c["choices"][0]["text"] for c in chunks if c["choices"][0]["index"] == index) == text
    assert usage["usage"] == told["usage"]


async def test_choices_of_several_prompts(door: Door) -> None:
    async with door.client() as client:
        told = (await client.post("/v1/completions", json={"prompt": ["a", "b"], "n": 2})).json()
        many = await client.post("/v1/completions", json={"prompt": ["a", "b", "c"], "n": 2})
    assert [choice["text"] for choice in told["choices"]] == ["a", "a", "b", "b"]
    assert told["usage"]["prompt_tokens"] == 2
    assert many.status_code == 400


async def test_sixteen_tokens_unless_said_otherwise(door: Door) -> None:
    async with door.client() as client:
        told = (await client.post("/v1/completions", json={"prompt": "a" * 40})).json()
    assert told["choices"][0]["text"] == "a" * 16
    assert told["choices"][0]["finish_reason"] == "length"


async def test_logprobs_with_offsets(door: Door) -> None:
    asked = {"prompt": "abc", "logprobs": 2}
    async with door.client() as client:
        whole = (await client.post("/v1/completions", json=asked)).json()["choices"][0]["logprobs"]
        stream = await client.post("/v1/completions", json={**asked, "stream": True})
        ids = await client.post("/v1/completions", json={**asked, "return_tokens_as_token_ids": True})
    assert whole["tokens"] == ["a", "b", "c", "<end>"]
    assert whole["text_offset"] == [0, 1, 2, 3]
    assert whole["token_logprobs"] == [-0.5] * 4
    assert whole["top_logprobs"][0] == {"a": -0.5, "b": -1.5}
    parts = [chunk["choices"][0]["logprobs"] for chunk in events(stream.text)[:-1]]
    assert [offset for part in parts for offset in part["text_offset"]] == [0, 1, 2, 3]
    assert ids.json()["choices"][0]["logprobs"]["tokens"][0] == "token_id:97"


async def test_tokenize_and_back(door: Door) -> None:
    async with door.client() as client:
        text = (await client.post("/tokenize", json={"prompt": "hé", "return_token_strs": True})).json()
        chat = (await client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]})).json()
        back = (await client.post("/detokenize", json={"tokens": [*text["tokens"], 256]})).json()
        neither = await client.post("/tokenize", json={})
        unknown = await client.post("/detokenize", json={"tokens": [9999]})
    assert text == {
        "count": 3,
        "max_model_len": 8192,
        "tokens": [104, 195, 169],
        "token_strs": ["h", "\ufffd", "\ufffd"],
    }
    assert bytes(chat["tokens"]) == b"user: a\nassistant: "
    assert back == {"prompt": "hé<end>"}
    assert (neither.status_code, unknown.status_code) == (400, 400)
