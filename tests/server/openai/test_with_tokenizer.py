"""The front door over the text side of a real model, with the instant generator for its instances."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="the text side of a model needs the extra 'serve'")
pytest.importorskip("torch", reason="the text side of a model needs the extra 'serve'")

from tierline.engine.text import open_text
from tierline.server.openai import FrontOptions
from tierline.testing.instant import InstantGenerator

from .conftest import Door, chat, events
from .test_images import GOOD, asking, uri

pytestmark = pytest.mark.anyio


async def test_text_images_and_stops_of_a_real_tokenizer(generator: InstantGenerator) -> None:
    text = open_text("tiny-vlm")
    said = "two red circles 😀, and one square"
    generator.answer = text.encode(said, add_special_tokens=False)
    (generator.end,) = text.model.end_tokens
    door = Door(generator, text, FrontOptions())
    model = {"model": "tiny-vlm", "max_tokens": 500}
    async with door.client() as client:
        seen = await client.post("/v1/chat/completions", json=asking(uri(GOOD)) | {"model": "tiny-vlm"})
        stream = await client.post("/v1/chat/completions", json=chat(stream=True) | model)
        cut = await client.post("/v1/chat/completions", json=chat(stop=[", and"], logprobs=True) | model)
        tokens = (await client.post("/tokenize", json={"prompt": said})).json()["tokens"]
        back = (await client.post("/detokenize", json={"tokens": tokens})).json()["prompt"]
    assert seen.json()["choices"][0]["message"]["content"] == "t"
    (span,) = generator.requests[0][0].images
    assert seen.json()["usage"]["prompt_tokens"] > span.tokens > 1
    pieces = [chunk["choices"][0]["delta"]["content"] for chunk in events(stream.text)[:-1]]
    assert "".join(pieces) == said
    assert not any("\ufffd" in piece for piece in pieces)
    (choice,) = cut.json()["choices"]
    assert choice["message"]["content"] == "two red circles 😀"
    told = b"".join(bytes(entry["bytes"]) for entry in choice["logprobs"]["content"])
    assert told.decode(errors="ignore").startswith("two red circles 😀,")
    assert back == said
