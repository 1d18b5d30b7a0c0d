"""The text side of a Transformers model: tokenizer, chat template, and where its images go.

Only the tokenizer is opened, no weights. `transformers` is imported when one is.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from tierline.core.errors import InvalidInput, MissingExtra
from tierline.core.request import ImageSpan, ServedModel
from tierline.core.serving_contracts import TokenStream
from tierline.engine.detokenize import ByteStream, WindowStream, token_bytes

PROBE = "\u2042probe\u2042"
DEFAULTS = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


class Layout(Protocol):
    """What stands for one image (`engine.families.text.ImageLayout`): `tokens` replace its placeholder, those equal to
    `image_token` are its positions."""

    @property
    def tokens(self) -> tuple[int, ...]: ...
    @property
    def image_token(self) -> int: ...
    @property
    def grid(self) -> tuple[int, ...]: ...


LayoutOf = Callable[[int, int], Layout]


class TransformersText:
    """The `ModelText` of a folder or Hugging Face id `source`. `placeholder` is the token that the chat template writes for
    an image, `layout` tells from (width, height) what replaces it; both None where the model takes no images.

    Thread-safe: of the tokenizer only what is (encoding and decoding by its Rust half) is used.
    """

    def __init__(
        self, source: str, model: ServedModel, *, placeholder: int | None = None, layout: LayoutOf | None = None
    ) -> None:
        """Raises `InvalidInput` for a tokenizer that cannot be opened or has no fast half, `MissingExtra` without
        transformers."""
        try:
            from transformers import AutoTokenizer
        except ImportError as error:
            raise MissingExtra("Serving a model", "serve") from error
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(source)
        except (OSError, ValueError, KeyError) as error:
            raise InvalidInput(f"The tokenizer of '{source}' cannot be opened: {_first_line(error)}.") from error
        self._backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        if self._backend is None:
            raise InvalidInput(f"The tokenizer of '{source}' has no fast version (tokenizer.json).")
        self._model = model
        self._placeholder = placeholder
        self._layout = layout
        added = self._backend.get_added_tokens_decoder()
        self._special = frozenset(token for token, entry in added.items() if entry.special)
        self._bytes = token_bytes(self._backend)
        self._template = self._tokenizer.chat_template or _processor_template(source)
        self._takes_parts = self._template is not None and self._probe([{"type": "text", "text": PROBE}])
        self._takes_strings = self._template is not None and (not self._takes_parts or self._probe(PROBE))
        reserved = inspect.signature(self._tokenizer.apply_chat_template).parameters
        self._reserved = frozenset(reserved) | {"messages", "add_generation_prompt", "bos_token", "eos_token"}

    @property
    def model(self) -> ServedModel:
        return self._model

    def chat_prompt(self, messages: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> str:
        """`options`: add_generation_prompt, continue_final_message, chat_template_kwargs. Raises `InvalidInput`."""
        if self._template is None:
            raise InvalidInput(f"The model '{self._model.name}' has no chat template: use /v1/completions.")
        more = dict(options.get("chat_template_kwargs") or {})
        taken = next((name for name in more if name in self._reserved), None)
        if taken is not None:
            raise InvalidInput(f"chat_template_kwargs: '{taken}' cannot be set there.")
        told = [{**message, "content": self._content(message["content"])} for message in messages]
        return self._apply(
            told,
            more,
            add_generation_prompt=bool(options.get("add_generation_prompt", True)),
            continue_final_message=bool(options.get("continue_final_message", False)),
        )

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        found: list[int] = self._backend.encode(text, add_special_tokens=add_special_tokens).ids
        return found

    def decode(self, tokens: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text: str = self._backend.decode(list(tokens), skip_special_tokens=skip_special_tokens)
        return text

    def token_text(self, token: int) -> tuple[str, bytes]:
        if self._bytes is not None:
            raw = self._bytes(token)
            return raw.decode("utf-8", "replace"), raw
        text = self.decode([token], skip_special_tokens=False)
        return text, text.encode()

    def stream(self, *, skip_special_tokens: bool = True) -> TokenStream:
        skipped = self._special if skip_special_tokens else frozenset()
        if self._bytes is not None:
            return ByteStream(self._bytes, skipped)
        return WindowStream(lambda tokens: self.decode(tokens, skip_special_tokens=False), skipped)

    def place_images(
        self, tokens: Sequence[int], images: Sequence[tuple[str, int, int]]
    ) -> tuple[tuple[int, ...], tuple[ImageSpan, ...]]:
        """A span reaches from the first to the last position of its image; where a family puts other tokens between (ends
        of rows), these lie within. Raises `InvalidInput` where placeholders and images differ in number."""
        if self._placeholder is None or self._layout is None:
            if images:
                raise InvalidInput(f"The model '{self._model.name}' takes no images.")
            return tuple(tokens), ()
        places = [place for place, token in enumerate(tokens) if token == self._placeholder]
        if len(places) != len(images):
            raise InvalidInput(
                f"The prompt has {len(places)} placeholders for {len(images)} images: the text itself must not contain any."
            )
        widened: list[int] = []
        spans: list[ImageSpan] = []
        done = 0
        for place, (content_hash, width, height) in zip(places, images, strict=True):
            layout = self._layout(width, height)
            widened += tokens[done:place]
            own = [at for at, token in enumerate(layout.tokens) if token == layout.image_token]
            if not own:
                raise InvalidInput(f"An image of {width}x{height} pixels has no place in this model's prompts.")
            spans.append(ImageSpan(content_hash, len(widened) + own[0], own[-1] - own[0] + 1, layout.grid))
            widened += layout.tokens
            done = place + 1
        widened += tokens[done:]
        return tuple(widened), tuple(spans)

    def _content(self, content: Any) -> Any:
        """As the template wants it: some take strings alone, some parts alone."""
        if isinstance(content, str):
            return content if self._takes_strings else [{"type": "text", "text": content}]
        if self._takes_parts:
            return list(content)
        mark = "" if self._placeholder is None else self._backend.id_to_token(self._placeholder)
        return "\n".join(mark if part["type"] == "image" else part["text"] for part in content)

    def _probe(self, content: Any) -> bool:
        """Whether the template shows the text of such a content, and not how Python writes a list."""
        try:
            shown = self._apply([{"role": "user", "content": content}], {}, add_generation_prompt=True)
        except InvalidInput:
            return False
        return PROBE in shown and "'text'" not in shown and '"text"' not in shown

    def _apply(self, messages: list[dict[str, Any]], more: Mapping[str, Any], **settings: bool) -> str:
        from jinja2 import TemplateError

        try:
            found = self._tokenizer.apply_chat_template(
                messages, chat_template=self._template, tokenize=False, **settings, **more
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise InvalidInput(f"The chat template refuses these messages: {_first_line(error)}.") from error
        return str(found)


def open_text(source: str, name: str = "", *, max_images: int = 32, context: int = 0) -> TransformersText:
    """The text side of `source` ('tiny-vlm', a folder, a Hugging Face id) with what its files say: context (at most
    `context` tokens where that is given), end tokens, images, sampling defaults. `name` is what clients call it. Raises
    `InvalidInput`."""
    from tierline.engine.families import image_layout_of
    from tierline.engine.model import context_tokens, end_tokens, locate, read_config

    config, folder = read_config(source), locate(source)
    layout = image_layout_of(config, folder)
    most = context_tokens(config)
    served = ServedModel(
        name or source,
        min(most, context) if context else most,
        layout is not None,
        int(config.get_text_config().vocab_size),
        end_tokens(source, config),
        max_images,
        generation_defaults(folder),
    )
    placeholder = None if layout is None else int(config.image_token_id)
    return TransformersText(folder, served, placeholder=placeholder, layout=layout)


def generation_defaults(source: str) -> dict[str, float]:
    """What the checkpoint's generation_config.json says of drawing; one that says not to sample means temperature 0."""
    from transformers import GenerationConfig

    try:
        told = GenerationConfig.from_pretrained(source).to_dict()
    except OSError:
        return {}
    found = {name: float(told[name]) for name in DEFAULTS if told.get(name) is not None}
    return found | {"temperature": 0.0} if told.get("do_sample") is False else found


def _processor_template(source: str) -> str | None:
    """Older checkpoints with images keep the template in a file of the processor's."""
    path = Path(source) / "chat_template.json"
    try:
        template = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
    except (OSError, ValueError, AttributeError):
        return None
    return template if isinstance(template, str) else None


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
