"""From a body's bytes to prompts: parsing, refusals, chat template, tokens. Runs in reader threads, off the event loop."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from tierline.core.errors import InvalidInput
from tierline.core.serving_contracts import ModelText
from tierline.server.openai.errors import bad_request, unknown_model, unsupported
from tierline.server.openai.images import ImageReader, SeenImage
from tierline.server.openai.options import FrontOptions
from tierline.server.openai.schemas import ChatBody, ChatMessage, CompletionBody, TokenizeBody
from tierline.server.openai.wish import Wish, chat_wish, completion_wish, shown

T = TypeVar("T")
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
CHAT = msgspec.json.Decoder(ChatBody)
COMPLETION = msgspec.json.Decoder(CompletionBody)
_PLACE = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)


@dataclass(slots=True)
class Prepared:
    """Prompts whose image placeholders are still one token each. `images` belong to the only prompt of a chat."""

    wish: Wish
    prompts: list[list[int]]
    images: list[SeenImage] = field(default_factory=list)


def decoded(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Raises `ApiError` (400) with the field at fault."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        place = _PLACE.search(message)
        where = f"{place[1]}: " if place and place[1] else "the body: "
        param = re.split(r"[.\[]", place[1])[0] or None if place else None
        raise bad_request(f"{where}{_PLACE.sub('', message)[:300]}.", param) from error
    except msgspec.DecodeError as error:
        raise bad_request(f"The body is not valid JSON: {error}.", code="invalid_json") from error
    except UnicodeDecodeError as error:
        raise bad_request("The body is not valid JSON: it is not UTF-8.", code="invalid_json") from error
    except RecursionError as error:
        raise bad_request("The body is nested too deeply.", code="invalid_json") from error
    except ValueError as error:  # a number of thousands of digits
        raise bad_request("The body holds a number that cannot be read.", code="invalid_json") from error


class Preparer:
    """Holds what all requests share. Thread-safe."""

    def __init__(self, text: ModelText, images: ImageReader, options: FrontOptions) -> None:
        self._text = text
        self._model = text.model
        self._images = images
        self._options = options

    def chat(self, body: bytes) -> Prepared:
        """Raises `ApiError`."""
        request = decoded(CHAT, body)
        self.check_model(request.model)
        wish = chat_wish(request, self._model, self._options)
        messages, images = self._messages(request.messages)
        tokens = self._chat_tokens(messages, request)
        return Prepared(wish, [tokens], images)

    def completion(self, body: bytes) -> Prepared:
        """Raises `ApiError`."""
        request = decoded(COMPLETION, body)
        self.check_model(request.model)
        wish = completion_wish(request, self._model, self._options)
        prompts = self._prompts(request.prompt)
        special = request.add_special_tokens is not False
        found = [
            self._encode(prompt, special) if isinstance(prompt, str) else self.checked(prompt, "prompt")
            for prompt in prompts
        ]
        if any(not tokens for tokens in found):
            raise bad_request("prompt is empty: at least one token is needed.", "prompt")
        if len(found) * wish.choices > self._options.max_prompts:
            raise bad_request(
                f"{len(found)} prompts with n {wish.choices}: at most {self._options.max_prompts} answers are allowed.",
                "prompt",
            )
        return Prepared(wish, found)

    def tokenize(self, request: TokenizeBody) -> list[int]:
        """For /tokenize. Raises `ApiError`."""
        self.check_model(request.model)
        if (request.prompt is None) == (request.messages is None):
            raise bad_request("Either prompt or messages is needed.", "prompt")
        if request.prompt is not None:
            return self._encode(request.prompt, request.add_special_tokens is not False)
        messages, _ = self._messages(request.messages or [])
        return self._chat_tokens(messages, request)

    def check_model(self, given: str | None) -> None:
        if given is not None and given != self._model.name:
            raise unknown_model(given, self._model.name)

    def _messages(self, messages: Sequence[ChatMessage]) -> tuple[list[dict[str, Any]], list[SeenImage]]:
        if not messages:
            raise bad_request("messages is empty: at least one is needed.", "messages")
        found: list[dict[str, Any]] = []
        images: list[SeenImage] = []
        for number, message in enumerate(messages):
            where = f"messages[{number}]"
            role = ROLES.get(message.role)
            if message.tool_calls or role is None:
                if message.tool_calls or message.role in ("tool", "function"):
                    raise unsupported(f"{where}: tools", "messages")
                raise bad_request(f"{where}.role '{message.role[:40]}': {', '.join(ROLES)} are allowed.", "messages")
            if message.content is None:
                raise bad_request(f"{where}.content is missing.", "messages")
            if isinstance(message.content, str):
                found.append({"role": role, "content": message.content})
                continue
            parts: list[dict[str, str]] = []
            for index, part in enumerate(message.content):
                place = f"{where}.content[{index}]"
                if part.type in ("text", "input_text"):
                    if part.text is None:
                        raise bad_request(f"{place}.text is missing.", "messages")
                    parts.append({"type": "text", "text": part.text})
                elif part.type in ("image_url", "input_image"):
                    self._room_for_image(len(images))
                    images.append(self._images.see(part.image_url, place))
                    parts.append({"type": "image"})
                elif not part.type:
                    raise bad_request(f"{place}.type is missing.", "messages")
                else:
                    raise unsupported(f"{place}: type '{part.type[:40]}'", "messages")
            found.append({"role": role, "content": parts})
        return found, images

    def _room_for_image(self, have: int) -> None:
        if not self._model.takes_images:
            raise bad_request(f"The model `{self._model.name}` takes no images.", "messages", "image_unsupported")
        if have >= self._model.max_images:
            raise bad_request(
                f"The request has more than the {self._model.max_images} images that are allowed.",
                "messages",
                "too_many_images",
            )

    def _chat_tokens(self, messages: list[dict[str, Any]], request: ChatBody | TokenizeBody) -> list[int]:
        going_on = bool(request.continue_final_message)
        begins = not going_on if request.add_generation_prompt is None else request.add_generation_prompt
        if going_on and begins:
            raise bad_request(
                "add_generation_prompt and continue_final_message exclude each other.", "add_generation_prompt"
            )
        settings = {
            "add_generation_prompt": begins,
            "continue_final_message": going_on,
            "chat_template_kwargs": request.chat_template_kwargs or {},
        }
        try:
            prompt = self._text.chat_prompt(messages, settings)
        except InvalidInput as error:
            raise bad_request(str(error), "messages") from error
        return self._encode(prompt, bool(request.add_special_tokens))

    def _encode(self, text: str, special: bool) -> list[int]:
        if len(text) > MAX_TEXT_PER_TOKEN * self._model.context_tokens:  # needs no counting
            raise bad_request(
                f"The prompt of {len(text)} characters is above this model's context of {self._model.context_tokens} tokens.",
                code="context_length_exceeded",
            )
        return self._text.encode(text, add_special_tokens=special)

    def _prompts(self, prompt: str | list[str | int | list[int]]) -> list[str | list[int]]:
        if isinstance(prompt, str):
            return [prompt]
        if not prompt:
            raise bad_request("prompt is empty.", "prompt")
        if len(prompt) > self._options.max_prompts and not isinstance(prompt[0], int):
            raise bad_request(f"{len(prompt)} prompts: at most {self._options.max_prompts} are allowed.", "prompt")
        if all(isinstance(item, int) for item in prompt):
            return [prompt]  # type: ignore[list-item]
        if any(isinstance(item, int) for item in prompt):
            raise bad_request("prompt mixes tokens with prompts: a list of either is allowed.", "prompt")
        return prompt  # type: ignore[return-value]

    def checked(self, tokens: list[int], name: str) -> list[int]:
        for token in tokens:
            if not 0 <= token < self._model.vocabulary:
                raise bad_request(
                    f"{name} holds the token {shown(token)}: 0 to {self._model.vocabulary - 1} are allowed.", name
                )
        return tokens


MAX_TEXT_PER_TOKEN = 64
"""A text with more characters than this for each token of the context is refused before it is tokenised."""
