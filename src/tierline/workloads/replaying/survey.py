"""What a server is asked before a load is sent to it: its model, how it counts words and pictures, what it takes.

Every answer is measured, not looked up by the model's name: tokens of two texts of different length give tokens per word
and those of the template around them; tokens of two pictures give the size of the square that becomes one token, or say that
every picture has as many, whatever its size.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from tierline.core.errors import DaemonUnavailable, InvalidInput
from tierline.workloads.replaying.answer import decoded, sentence
from tierline.workloads.replaying.http import Client
from tierline.workloads.replaying.pictures import Pictures
from tierline.workloads.replaying.words import Words

SHORT_WORDS, LONG_WORDS = 32, 160
SMALL_PX, LARGE_PX = 224, 448
ESTIMATED_TOKENS_PER_WORD = 1.0
ESTIMATED_TEMPLATE_TOKENS = 16
UNITS_PX = range(8, 65)


@dataclass(frozen=True, slots=True)
class Survey:
    """What a server is like. `unit_px`: the side of the square that becomes one token; 0 = pictures have `image_tokens`
    each, whatever their size. `context_tokens` 0 = not told. `counted`: how words were counted. `takes_ignore_eos`: answers
    have the wanted length."""

    model: str
    context_tokens: int
    tokens_per_word: float
    template_tokens: int
    counted: str
    takes_ignore_eos: bool
    unit_px: int = 0
    image_tokens: int = 0

    def notes(self, with_images: bool) -> list[str]:
        """What a reader of the figures has to know, in sentences."""
        found = [f"Words are counted {self.counted}: {self.tokens_per_word:.3g} tokens a word."]
        if not self.takes_ignore_eos:
            found.append("The server takes no ignore_eos, so answers may be shorter than the workload's.")
        if with_images and self.unit_px:
            found.append(f"Pictures have the workload's tokens: {self.unit_px} x {self.unit_px} px are one.")
        elif with_images and self.image_tokens:
            found.append(f"Every picture has {self.image_tokens} tokens at this server, whatever the workload says.")
        elif with_images:
            found.append("The server does not tell what a picture costs; they are drawn with 28 x 28 px a token.")
        return found


async def survey(client: Client, model: str, with_images: bool, timeout_s: float = 120.0) -> Survey:
    """Ask. Raises DaemonUnavailable when nobody answers, InvalidInput when the server does not serve `model`, text, or
    pictures where they are wanted."""
    return await _Surveyor(client, timeout_s).run(model, with_images)


class _Surveyor:
    def __init__(self, client: Client, timeout_s: float) -> None:
        self._client = client
        self._timeout_s = timeout_s
        self._words = Words("survey")

    async def run(self, model: str, with_images: bool) -> Survey:
        name, context = await self._model(model)
        content = self._words.text("first", SHORT_WORDS)
        status, told = await self._chat(name, content, {"ignore_eos": True})
        takes_ignore_eos = status == 200
        if not takes_ignore_eos:
            status, told = await self._chat(name, content, {})
        if status != 200:
            raise InvalidInput(f"{self._client.address} refused a short text ({status}): {sentence(told)}")
        first_tokens = _prompt_tokens(told)
        per_word, template, counted = await self._count_words(name, first_tokens)
        unit_px, image_tokens = await self._count_pictures(name, first_tokens) if with_images else (0, 0)
        return Survey(name, context, per_word, template, counted, takes_ignore_eos, unit_px, image_tokens)

    async def _ask(self, method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        try:
            status, data = await self._client.get(
                method, path, json.dumps(body).encode() if body is not None else b"", self._timeout_s
            )
        except ConnectionError as error:
            raise DaemonUnavailable(
                f"No server answers at {self._client.address} ({error}): `tierline serve` starts one."
            ) from error
        return status, decoded(data)

    async def _chat(self, model: str, content: Any, more: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        messages = [{"role": "user", "content": content}]
        return await self._ask(
            "POST", "/v1/chat/completions", {"model": model, "messages": messages, "max_tokens": 1, **more}
        )

    async def _model(self, model: str) -> tuple[str, int]:
        status, told = await self._ask("GET", "/v1/models")
        if status in (401, 403):
            raise InvalidInput(f"{self._client.address} wants an API key ({status}): give one with --api-key.")
        cards = [card for card in told.get("data") or () if isinstance(card, dict) and "id" in card]
        names = [str(card["id"]) for card in cards]
        if model and names and model not in names:
            raise InvalidInput(f"model '{model}': {self._client.address} serves {', '.join(names)}.")
        if not model and not names:
            raise InvalidInput(f"{self._client.address} names no model ({status}): give one with --model.")
        card = cards[names.index(model) if model in names else 0] if cards else {}
        return model or names[0], int(card.get("max_model_len") or 0)

    async def _count_words(self, model: str, first_tokens: int) -> tuple[float, int, str]:
        """(tokens per word, tokens of the template, how they were counted)."""
        counts = []
        for key, words in (("first", SHORT_WORDS), ("second", LONG_WORDS)):
            messages = [{"role": "user", "content": self._words.text(key, words)}]
            status, told = await self._ask("POST", "/tokenize", {"model": model, "messages": messages})
            counts.append(int(told.get("count") or 0) if status == 200 else 0)
        how = "by the server's /tokenize"
        if min(counts) <= 0:
            _, told = await self._chat(model, self._words.text("second", LONG_WORDS), {})
            counts, how = [first_tokens, _prompt_tokens(told)], "by the server's usage"
        if min(counts) <= 0 or counts[1] <= counts[0]:
            return ESTIMATED_TOKENS_PER_WORD, ESTIMATED_TEMPLATE_TOKENS, "by an estimate"
        per_word = (counts[1] - counts[0]) / (LONG_WORDS - SHORT_WORDS)
        return per_word, max(0, round(counts[0] - per_word * SHORT_WORDS)), how

    async def _count_pictures(self, model: str, first_tokens: int) -> tuple[int, int]:
        """(px of a token's side or 0, tokens of a picture where they are always as many). `first_tokens`: of the same text
        without a picture."""
        pictures = Pictures("survey")
        counts = []
        words = self._words.text("first", SHORT_WORDS)
        for side in (SMALL_PX, LARGE_PX):
            url = f"data:image/png;base64,{pictures.base64(str(side), side, side).decode()}"
            content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": words}]
            status, told = await self._chat(model, content, {})
            if status != 200:
                raise InvalidInput(
                    f"{self._client.address} refused a picture ({status}): {sentence(told)} "
                    "With --text-only the requests without pictures are sent alone."
                )
            counts.append(_prompt_tokens(told))
        if min(counts) <= 0 or not first_tokens:
            return 0, 0
        small, large = counts
        if large - first_tokens <= 1.5 * (small - first_tokens):
            return 0, max(1, small - first_tokens)
        # (LARGE² − SMALL²) / unit² = the difference: what stands around a picture falls out of it
        exact = math.sqrt((LARGE_PX**2 - SMALL_PX**2) / (large - small))
        return min(UNITS_PX, key=lambda unit: abs(unit - exact)), 0


def _prompt_tokens(told: dict[str, Any]) -> int:
    usage = told.get("usage")
    return int(usage.get("prompt_tokens") or 0) if isinstance(usage, dict) else 0
