"""OpenAI's own client against the front door."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest

pytest.importorskip("openai", reason="OpenAI's client is not installed")

import openai

from tierline.core.errors import Overloaded
from tierline.server.openai import FrontOptions
from tierline.testing.instant import ByteText, InstantGenerator

from .conftest import Live
from .test_images import GOOD, uri

KEY = "a-key-for-the-client"
ASKED = [{"role": "user", "content": "hello"}]
SAID = "user: hello\nassistant: "


@pytest.fixture
def live(generator: InstantGenerator) -> Iterator[Live]:
    with Live(generator, ByteText(), FrontOptions(api_keys=(KEY,))) as server:
        yield server


@pytest.fixture
def client(live: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=live.url, api_key=KEY, max_retries=0) as made:
        yield made


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["instant"]
    assert client.models.retrieve("instant").owned_by == "tierline"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-5")


def test_a_whole_answer(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="instant", messages=ASKED, max_completion_tokens=6, n=2, seed=1)
    assert [choice.message.content for choice in answer.choices] == [SAID[:6]] * 2
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage is not None and answer.usage.prompt_tokens_details is not None
    assert (answer.usage.completion_tokens, answer.usage.prompt_tokens_details.cached_tokens) == (12, 0)


def test_a_stream_with_usage(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="instant", messages=ASKED, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = stream
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == SAID
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage is not None
    assert last.usage.total_tokens == len(SAID) + len(SAID) + 1


def test_log_probabilities(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="instant", messages=ASKED, logprobs=True, top_logprobs=2, max_tokens=2
    )
    told = answer.choices[0].logprobs
    assert told is not None and told.content is not None
    assert [(each.token, each.bytes, each.logprob) for each in told.content] == [("u", [117], -0.5), ("s", [115], -0.5)]
    assert [top.token for top in told.content[0].top_logprobs] == ["u", "v"]
    old = client.completions.create(model="instant", prompt="ab", logprobs=1).choices[0].logprobs
    assert old is not None
    assert (old.tokens, old.text_offset) == (["a", "b", "<end>"], [0, 1, 2])


def test_images(client: openai.OpenAI, live: Live) -> None:
    parts = [{"type": "text", "text": "?"}, {"type": "image_url", "image_url": {"url": uri(GOOD), "detail": "low"}}]
    for _ in range(2):
        client.chat.completions.create(model="instant", messages=[{"role": "user", "content": parts}], max_tokens=1)
    (first, pictures), (second, _) = live.generator.requests
    assert first.images == second.images
    assert [picture.width for picture in pictures.values()] == [8]
    broken = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + base64.b64encode(GOOD[:50]).decode()}}
    ]
    with pytest.raises(openai.BadRequestError, match="cannot be decoded"):
        client.chat.completions.create(model="instant", messages=[{"role": "user", "content": broken}])


def test_completions_of_text_and_tokens(client: openai.OpenAI) -> None:
    assert [choice.text for choice in client.completions.create(model="instant", prompt=["ab", "c"]).choices] == [
        "ab",
        "c",
    ]
    stream = client.completions.create(model="instant", prompt=[104, 105], stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "hi"


def test_refusals_are_the_clients_own_exceptions(client: openai.OpenAI, live: Live) -> None:
    with pytest.raises(openai.NotFoundError) as unknown:
        client.chat.completions.create(model="gpt-5", messages=ASKED)
    assert unknown.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError) as tools:
        client.chat.completions.create(
            model="instant", messages=ASKED, tools=[{"type": "function", "function": {"name": "f"}}]
        )
    assert (tools.value.param, tools.value.code) == ("tools", "unsupported_parameter")
    with pytest.raises(openai.BadRequestError, match="max_tokens -1"):
        client.chat.completions.create(model="instant", messages=ASKED, max_tokens=-1)
    with (
        openai.OpenAI(base_url=live.url, api_key="another-key", max_retries=0) as other,
        pytest.raises(openai.AuthenticationError),
    ):
        other.models.list()
    live.generator.fail = lambda request: Overloaded("Too much waits.", 2)
    with pytest.raises(openai.InternalServerError, match="Too much waits") as overloaded:
        client.chat.completions.create(model="instant", messages=ASKED)
    assert overloaded.value.response.headers["retry-after"] == "2"


def test_an_error_within_a_stream_is_raised(client: openai.OpenAI, live: Live) -> None:
    live.generator.lose_after = 3
    stream = client.chat.completions.create(model="instant", messages=ASKED, stream=True)
    told = [next(stream).choices[0].delta.content for _ in range(4)]
    with pytest.raises(openai.APIError, match="The instance was lost"):
        next(stream)
    assert told == ["", "u", "s", "e"]


def test_a_client_retries_what_is_overloaded(live: Live) -> None:
    refused = [Overloaded("Too much waits.", 0.01)]
    live.generator.fail = lambda request: refused.pop() if refused else None
    with openai.OpenAI(base_url=live.url, api_key=KEY, max_retries=2) as client:
        answer = client.chat.completions.create(model="instant", messages=ASKED)
    assert answer.choices[0].message.content == SAID
    assert live.generator.started == 2
