"""Bad input of every kind: an error in OpenAI's shape, and nothing else happens."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from tierline.core.request import ServedModel
from tierline.server.openai import FrontOptions
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Door, chat

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HUGE = 10**30


@pytest.fixture
def door(generator: InstantGenerator) -> Door:
    model = ServedModel("instant", 200, True, 258, (256,))
    return Door(generator, ByteText(model), FrontOptions(max_body_bytes=100_000, max_choices=4))


def check(answer: httpx.Response, status: int, param: str | None) -> str:
    """The message; the shape is as OpenAI's."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-request-id"]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["param"] == param, error
    message = str(error["message"])
    assert message.endswith(".") and len(message) < 600 and "\n" not in message
    return message


VALUES = [
    ("temperature", -0.1), ("temperature", "hot"), ("temperature", [1]), ("temperature", True), ("temperature", HUGE),
    ("top_p", 0), ("top_p", 1.1), ("top_p", -1), ("top_k", -2), ("top_k", 1.5), ("top_k", HUGE), ("min_p", 2),
    ("min_p", -0.1),
    ("presence_penalty", 2.1), ("frequency_penalty", -3), ("repetition_penalty", 0), ("repetition_penalty", -1),
    ("max_tokens", -1), ("max_tokens", 0), ("max_tokens", 1.5), ("max_tokens", "5"), ("max_tokens", HUGE),
    ("max_tokens", 190),
    ("min_tokens", -1), ("min_tokens", HUGE), ("min_tokens", 199), ("n", 0), ("n", 5), ("n", -1), ("n", HUGE),
    ("n", "2"),
    ("best_of", 3), ("stop", ""), ("stop", ["a"] * 17), ("stop", [""]), ("stop", 5), ("stop", ["x" * 1001]),
    ("stop_token_ids", [-1]), ("stop_token_ids", [258]), ("stop_token_ids", ["a"]), ("stop_token_ids", [HUGE]),
    ("logit_bias", {"a": 1}), ("logit_bias", {"258": 1}), ("logit_bias", {"-1": 1}), ("logit_bias", {"5": 101}),
    ("logit_bias", {"5": "x"}), ("logit_bias", {str(HUGE): 1}), ("logit_bias", {str(n): 1 for n in range(1025)}),
    ("priority", HUGE), ("priority", "first"), ("seed", "x"), ("stream", "yes"),
    ("stream_options", {"include_usage": True}),
    ("response_format", {"type": "json_schema"}), ("response_format", {"type": "json_object"}),
    ("response_format", {"type": [1]}),
    ("response_format", "text"), ("guided_json", {}), ("structured_outputs", {"regex": "a"}), ("prompt_logprobs", 1),
    ("use_beam_search", True), ("echo", True), ("model", 5),
]  # fmt: skip
CHAT_VALUES = [
    ("tools", [{"type": "function", "function": {"name": "f"}}]), ("tool_choice", "required"),
    ("tool_choice", {"type": "function"}),
    ("functions", [{"name": "f"}]), ("audio", {"voice": "x"}), ("modalities", ["text", "audio"]), ("top_logprobs", 3),
    ("chat_template", "{{ 1 }}"), ("max_completion_tokens", -1), ("logprobs", 3), ("messages", []),
    ("messages", "hello"),
    ("messages", [{"role": "user"}]), ("messages", [{"content": "x"}]),
    ("messages", [{"role": "king", "content": "x"}]),
    ("messages", [{"role": "tool", "content": "x"}]), ("messages", [{"role": "user", "content": 5}]),
    ("messages", [{"role": "user", "content": [{"type": "text"}]}]), ("messages", [{"role": "user", "content": [{}]}]),
    ("messages", [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ""}}]}]),
    ("messages", [{"role": "user", "content": [{"type": "video_url"}]}]),
    ("messages", [{"role": "user", "content": ["x"]}]),
    ("messages", [{"role": "assistant", "content": "", "tool_calls": [{}]}]), ("messages", [5]), ("messages", None),
    ("messages", [{"role": "user", "content": "x" * 250}]), ("messages", [{"role": "user", "content": "x" * 50_000}]),
]  # fmt: skip
COMPLETION_VALUES = [
    ("prompt", ""), ("prompt", []), ("prompt", [[]]), ("prompt", [1, "a"]), ("prompt", [1, [2]]), ("prompt", [258]),
    ("prompt", [-1]),
    ("prompt", [HUGE]), ("prompt", {"a": 1}), ("prompt", None), ("prompt", [[["deep"]]]), ("prompt", "x" * 250),
    ("prompt", [65] * 200),
    ("prompt", ["a"] * 300), ("suffix", "x"), ("logprobs", 21), ("logprobs", -1), ("logprobs", True),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value"), [*VALUES, *CHAT_VALUES])
async def test_chat(door: Door, name: str, value: Any) -> None:
    async with door.client() as client:
        answer = await client.post(CHAT, json=chat(**{name: value}))
    too_long = name == "messages" and value and isinstance(value[0], dict) and len(str(value)) > 250
    message = check(answer, 400, answer.json()["error"]["param"] if too_long else name)
    assert name in message or answer.json()["error"]["code"] in ("unsupported_parameter", "context_length_exceeded")
    assert door.generator.started == 0


@pytest.mark.parametrize(("name", "value"), [*VALUES, *COMPLETION_VALUES])
async def test_completions(door: Door, name: str, value: Any) -> None:
    async with door.client() as client:
        answer = await client.post(COMPLETIONS, json={"prompt": "hello", "max_tokens": 5} | {name: value})
    if (name, value) == ("max_tokens", 190):
        assert answer.status_code == 200
        return
    assert answer.status_code == 400
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    assert door.generator.started == 0


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"nonsense", b"[]", b'"text"', b"null", b"5", b'{"messages": [}', b"\xff\xfe", b"\x00",
        b'{"messages":[{"role":"user","content":"\xff"}]}', b'{"messages":[{"role":"user","content":"\\ud800"}]}',
        b'{"messages":[{"role":"user","content":"x"}],"temperature":NaN}', b"[" * 50_000,
        b'{"x":' + b"[" * 40_000 + b"]" * 40_000 + b"}",
        b'{"messages":[{"role":"user","content":"x"}],"temperature":Infinity}',
        b'{"messages":[{"role":"user","content":"x"}],"temperature":1e999}',
        b'{"messages":[{"role":"user","content":"x"}],"seed":' + b"9" * 5000 + b"}",
        b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":' + b"[" * 40_000 + b"]" * 40_000 + b"}]}]}",
        b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"\\ud800"}}]}]}',
        b'{"messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"data:,\xff"}}]}]}',
    ],
)  # fmt: skip
async def test_bodies_that_are_none(door: Door, body: bytes) -> None:
    async with door.client() as client:
        for path in (CHAT, COMPLETIONS, "/tokenize", "/detokenize"):
            answer = await client.post(path, content=body, headers={"content-type": "application/json"})
            if path == "/tokenize" and answer.status_code == 200:  # what it does not know it does not read
                assert b"temperature" in body or b"seed" in body
                continue
            assert answer.status_code == 400, (path, answer.text)
            check(answer, 400, answer.json()["error"]["param"])
        good = await client.post(CHAT, json=chat())
    assert good.status_code == 200


async def test_a_deep_object_among_unknown_fields(door: Door) -> None:
    deep: Any = []
    for _ in range(100):
        deep = [deep]
    async with door.client() as client:
        answer = await client.post(CHAT, json=chat(metadata=deep))
    assert answer.status_code == 200


async def test_unknown_models_and_paths(door: Door) -> None:
    async with door.client() as client:
        for path, body in ((CHAT, chat(model="gpt-5")), (COMPLETIONS, {"model": "gpt-5", "prompt": "x"})):
            answer = await client.post(path, json=body)
            assert "`gpt-5` does not exist" in check(answer, 404, "model")
            assert answer.json()["error"]["code"] == "model_not_found"
        assert "`other`" in check(await client.get("/v1/models/other"), 404, "model")
        assert (await client.get("/v1/models/instant")).json()["id"] == "instant"
        (card,) = (await client.get("/v1/models")).json()["data"]
        check(await client.get("/v1/nothing"), 404, None)
        wrong = await client.get(CHAT)
    assert card["max_model_len"] == 200
    assert wrong.status_code == 405


async def test_large_bodies(door: Door) -> None:
    headers = {"content-type": "application/json"}

    async def pieces() -> Any:
        for _ in range(30):
            yield b" " * 10_000

    async with door.client() as client:
        told = await client.post(CHAT, content=b" " * 100_001, headers=headers)
        streamed = await client.post(CHAT, content=pieces(), headers=headers)
        good = await client.post(CHAT, content=json.dumps(chat()).encode() + b" " * 90_000, headers=headers)
        status = (await client.get("/tierline/status")).json()
    assert "100000 bytes that are allowed" in check(told, 413, None)
    check(streamed, 413, None)
    assert good.status_code == 200
    assert status["front"]["held_bytes"] == 0


async def test_content_types(door: Door) -> None:
    body = json.dumps(chat()).encode()
    async with door.client() as client:
        form = await client.post(CHAT, content=body, headers={"content-type": "application/x-www-form-urlencoded"})
        charset = await client.post(CHAT, content=body, headers={"content-type": "application/json; charset=utf-8"})
        zipped = await client.post(
            CHAT, content=body, headers={"content-type": "application/json", "content-encoding": "gzip"}
        )
        bare = await client.post(CHAT, content=body)
    check(form, 415, None)
    check(zipped, 415, None)
    assert (charset.status_code, bare.status_code) == (200, 200)


async def test_request_ids(door: Door) -> None:
    async with door.client() as client:
        given = await client.post(CHAT, json=chat(n=0), headers={"x-request-id": "abc-1"})
        spaces = await client.post(CHAT, json=chat(), headers={"x-request-id": "a b"})
        long = await client.get("/health", headers={"x-request-id": "a" * 513})
        none = await client.get("/nothing")
        other = await client.get("/health", headers={"x-client-request-id": "b" * 512})
        both = await client.get("/health", headers={"x-client-request-id": "b", "x-request-id": "a"})
        served = await client.post(CHAT, json=chat(n=2), headers={"x-request-id": "abc-2"})
    assert other.headers["x-request-id"] == "b" * 512 and both.headers["x-request-id"] == "a"
    assert served.json()["id"] == "chatcmpl-abc-2"
    assert [request.client_id for request, _ in door.generator.requests[-2:]] == ["abc-2"] * 2
    assert given.headers["x-request-id"] == "abc-1"
    for answer in (spaces, long, none):
        assert len(answer.headers["x-request-id"]) == 32
