"""Metrics under vLLM's names, health and status."""

from __future__ import annotations

import pytest

from tierline.core.errors import Overloaded
from tierline.server.openai import FrontOptions
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Door, chat

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


def read(text: str) -> dict[str, float]:
    lines = (line.rpartition(" ") for line in text.splitlines() if line and not line.startswith("#"))
    return {name.replace('model_name="instant"', "").replace("{}", ""): float(value) for name, _, value in lines}


async def test_what_is_counted(generator: InstantGenerator) -> None:
    generator.answer = list(b"abcd")
    generator.cached_tokens = 5
    door = Door(generator, ByteText(), FrontOptions())
    async with door.client() as client:
        await client.post(CHAT, json=chat(n=2))
        await client.post(CHAT, json=chat(stream=True, max_tokens=2))
        generator.lose_after = 1
        await client.post(CHAT, json=chat(stream=True))
        generator.lose_after = None
        generator.fail = lambda request: Overloaded("Too much.")
        await client.post(CHAT, json=chat())
        await client.post(CHAT, json=chat(n=0))
        answer = await client.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = read(answer.text)
    assert found["vllm:num_requests_running"] == found["vllm:num_requests_waiting"] == 0
    assert found["vllm:prompt_tokens_total"] == 5 * len("user: hello\nassistant: ")
    assert found["vllm:generation_tokens_total"] == 5 + 5 + 2 + 1
    assert found["vllm:prompt_tokens_cached_total"] == 20
    assert found["vllm:time_to_first_token_seconds_count"] == 4
    assert found["vllm:inter_token_latency_seconds_count"] == 4 + 4 + 1
    assert found["vllm:e2e_request_latency_seconds_count"] == 5
    assert found["vllm:request_generation_tokens_sum"] == 13
    by_end = {
        name: found[f'vllm:request_success_total{{finished_reason="{name}",}}'] for name in ("stop", "length", "error")
    }
    assert by_end == {"stop": 2, "length": 1, "error": 2}
    assert found['vllm:admission_rejections_total{,status="503"}'] == 2
    assert found['vllm:admission_rejections_total{,status="400"}'] == 1
    assert found["tierline:instant_requests_total"] == 5
    assert 'model_name="instant"' in answer.text


async def test_health_is_the_generators_and_the_servers(generator: InstantGenerator) -> None:
    door = Door(generator, ByteText(), FrontOptions())
    async with door.client() as client:
        good = await client.get("/health")
        generator.ill = "No instance is left."
        ill = await client.get("/health")
        generator.ill = ""
        door.app.state.front.drain(7.2)
        ending = await client.get("/ping")
        refused = await client.post(CHAT, json=chat())
        models = await client.get("/v1/models")
        status = (await client.get("/tierline/status")).json()
        version = (await client.get("/version")).json()
    assert (good.status_code, good.content) == (200, b"")
    assert (ill.status_code, ill.json()["error"]["message"]) == (503, "No instance is left.")
    assert (ending.status_code, models.status_code) == (503, 200)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "8")
    assert refused.json()["error"]["code"] == "shutting_down"
    assert (status["front"]["draining"], status["front"]["model"]) == (True, "instant")
    assert status["started"] == 0
    assert version["version"]
