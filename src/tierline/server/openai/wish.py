"""What a body asks for beyond its prompt: how tokens are drawn and how the answer is told. Refusals name the field."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass, replace
from typing import Any

from tierline.core.request import Sampling, ServedModel
from tierline.server.openai.errors import bad_request, unsupported
from tierline.server.openai.options import FrontOptions
from tierline.server.openai.schemas import ChatBody, CommonBody, CompletionBody

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_BIASES = 1024
MAX_SEED = 2**63 - 1
DEFAULT_COMPLETION_TOKENS = 16
_STRUCTURED = ("structured_outputs", "guided_json", "guided_regex", "guided_choice", "guided_grammar")


@dataclass(frozen=True, slots=True)
class Wish:
    """`sampling.max_tokens` 0 = as many as the context has room for (known once the prompt is). `priority`: higher goes
    first. `logprobs`: alternatives to each token that are told, None = no log-probabilities."""

    sampling: Sampling
    choices: int = 1
    stops: tuple[str, ...] = ()
    include_stop: bool = False
    skip_special: bool = True
    stream: bool = False
    usage: bool = False
    usage_always: bool = False
    logprobs: int | None = None
    tokens_as_ids: bool = False
    priority: int = 0

    def seed_of(self, choice: int) -> int:
        """Choice 0 has the seed that was asked for; the others have seeds of their own, always the same ones."""
        if choice == 0:
            return self.sampling.seed
        digest = hashlib.blake2b(f"{self.sampling.seed}/{choice}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "big") & MAX_SEED

    def sampling_of(self, choice: int, prompt_tokens: int, model: ServedModel) -> Sampling:
        """For a prompt of so many tokens. Raises `ApiError` (400) when the context has no room."""
        room = model.context_tokens - prompt_tokens
        asked = self.sampling.max_tokens
        if room < max(1, asked):
            wanted = f" and {shown(asked)} for the answer" if asked else ""
            raise bad_request(
                f"This model's context has {model.context_tokens} tokens: {prompt_tokens} in the prompt{wanted} are too "
                "many.",
                "messages" if not asked else "max_tokens",
                "context_length_exceeded",
            )
        if self.sampling.min_tokens > (asked or room):
            raise bad_request(
                f"min_tokens {shown(self.sampling.min_tokens)}: at most max_tokens ({asked or room}) is allowed.",
                "min_tokens",
            )
        return replace(self.sampling, max_tokens=asked or room, seed=self.seed_of(choice))


def chat_wish(body: ChatBody, model: ServedModel, options: FrontOptions) -> Wish:
    """Raises `ApiError` (400)."""
    _refuse_tools(body)
    if body.echo:
        raise unsupported("echo", "echo")
    alternatives = None
    if body.logprobs:
        alternatives = _within("top_logprobs", body.top_logprobs or 0, 0, options.max_logprobs)
    elif body.top_logprobs:
        raise bad_request("top_logprobs needs logprobs to be true.", "top_logprobs")
    limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
    name = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
    return _wish(body, model, options, 0 if limit is None else _at_least(name, limit, 1), alternatives)


def completion_wish(body: CompletionBody, model: ServedModel, options: FrontOptions) -> Wish:
    """Raises `ApiError` (400)."""
    if body.echo:
        raise unsupported("echo", "echo")
    if body.suffix:
        raise unsupported("suffix", "suffix")
    alternatives = None if body.logprobs is None else _within("logprobs", body.logprobs, 0, options.max_logprobs)
    limit = DEFAULT_COMPLETION_TOKENS if body.max_tokens is None else _at_least("max_tokens", body.max_tokens, 1)
    return _wish(body, model, options, limit, alternatives)


def _wish(
    body: CommonBody, model: ServedModel, options: FrontOptions, max_tokens: int, alternatives: int | None
) -> Wish:
    _refuse_common(body)
    choices = _at_least("n", _given(body.n, 1), 1)
    if choices > options.max_choices:
        raise bad_request(f"n {shown(choices)}: at most {options.max_choices} is allowed.", "n")
    if body.best_of is not None and body.best_of != choices:
        raise unsupported("best_of other than n", "best_of")
    stream = bool(body.stream)
    if body.stream_options is not None and not stream:
        raise bad_request("stream_options is allowed only when stream is true.", "stream_options")
    usage = stream and body.stream_options is not None and bool(body.stream_options.include_usage)
    sampling = Sampling(
        max_tokens=max_tokens,
        min_tokens=_at_least("min_tokens", _given(body.min_tokens, 0), 0),
        **_drawing(body, model),
        seed=random.getrandbits(63) if body.seed is None else body.seed % (MAX_SEED + 1),
        stop_token_ids=_stop_tokens(body, model),
        ignore_eos=bool(body.ignore_eos),
        logprobs=alternatives,
        logit_bias=_biases(body, model),
    )
    return Wish(
        sampling=sampling,
        choices=choices,
        stops=_stops(body),
        include_stop=bool(body.include_stop_str_in_output),
        skip_special=body.skip_special_tokens is not False,
        stream=stream,
        usage=usage,
        usage_always=usage and body.stream_options is not None and bool(body.stream_options.continuous_usage_stats),
        logprobs=alternatives,
        tokens_as_ids=bool(body.return_tokens_as_token_ids),
        priority=-_within("priority", body.priority or 0, -(2**31), 2**31 - 1),
    )


def _drawing(body: CommonBody, model: ServedModel) -> dict[str, Any]:
    """The numbers that shape the distribution: from the body, else the model's own, else OpenAI's."""

    def number(name: str, fallback: float, low: float, high: float) -> float:
        given = getattr(body, name)
        value = model.generation_defaults.get(name, fallback) if given is None else given
        return float(_within(name, value, low, high))

    top_k = body.top_k if body.top_k is not None else int(model.generation_defaults.get("top_k", 0))
    top_p = number("top_p", 1.0, 0, 1)
    repetition = number("repetition_penalty", 1.0, 0, 100)
    if top_p == 0:
        raise bad_request("top_p 0: more than 0 and at most 1 is allowed.", "top_p")
    if repetition == 0:
        raise bad_request("repetition_penalty 0: more than 0 is allowed.", "repetition_penalty")
    return {
        "temperature": number("temperature", 1.0, 0, 100),
        "top_p": top_p,
        "top_k": max(0, int(_within("top_k", top_k, -1, 2**31 - 1))),
        "min_p": number("min_p", 0.0, 0, 1),
        "presence_penalty": number("presence_penalty", 0.0, -2, 2),
        "frequency_penalty": number("frequency_penalty", 0.0, -2, 2),
        "repetition_penalty": repetition,
    }


def _stops(body: CommonBody) -> tuple[str, ...]:
    stops = [body.stop] if isinstance(body.stop, str) else body.stop or []
    if len(stops) > MAX_STOPS:
        raise bad_request(f"stop has {len(stops)} strings: at most {MAX_STOPS} are allowed.", "stop")
    if any(not stop or len(stop) > MAX_STOP_LENGTH for stop in stops):
        raise bad_request(f"stop: strings of 1 to {MAX_STOP_LENGTH} characters are allowed.", "stop")
    return tuple(dict.fromkeys(stops))


def _stop_tokens(body: CommonBody, model: ServedModel) -> tuple[int, ...]:
    for token in body.stop_token_ids or ():
        if not 0 <= token < model.vocabulary:
            raise bad_request(
                f"stop_token_ids holds {shown(token)}: 0 to {model.vocabulary - 1} are allowed.", "stop_token_ids"
            )
    return tuple(dict.fromkeys(body.stop_token_ids or ()))


def _biases(body: CommonBody, model: ServedModel) -> tuple[tuple[int, float], ...]:
    given = body.logit_bias or {}
    if len(given) > MAX_BIASES:
        raise bad_request(f"logit_bias has {len(given)} tokens: at most {MAX_BIASES} are allowed.", "logit_bias")
    biases = []
    for key, bias in given.items():
        if not (key.isascii() and key.isdecimal() and len(key) < 12 and int(key) < model.vocabulary):
            raise bad_request(
                f"logit_bias names the token '{key[:40]}': ids from 0 to {model.vocabulary - 1} are allowed.",
                "logit_bias",
            )
        biases.append((int(key), _within("logit_bias", bias, -100, 100)))
    return tuple(biases)


def _refuse_common(body: CommonBody) -> None:
    if body.use_beam_search:
        raise unsupported("use_beam_search", "use_beam_search")
    if body.prompt_logprobs is not None:
        raise unsupported("prompt_logprobs", "prompt_logprobs")
    kind = (body.response_format or {}).get("type", "text")
    if kind != "text":
        raise unsupported(f"response_format of type '{str(kind)[:40]}'", "response_format")
    for name in _STRUCTURED:
        if getattr(body, name) is not None:
            raise unsupported(name, name)


def _refuse_tools(body: ChatBody) -> None:
    if body.tools and body.tool_choice != "none":
        raise unsupported("tools (other than with tool_choice 'none')", "tools")
    if not body.tools and body.tool_choice not in (None, "none", "auto"):
        raise unsupported("tool_choice", "tool_choice")
    if body.functions and body.function_call != "none":
        raise unsupported("functions", "functions")
    if body.audio is not None or any(kind != "text" for kind in body.modalities or ()):
        raise unsupported("audio as an answer", "modalities" if body.audio is None else "audio")
    if body.chat_template is not None:
        raise unsupported("chat_template (the model's own is used)", "chat_template")


def _given(value: int | None, fallback: int) -> int:
    return fallback if value is None else value


def _within(name: str, value: Any, low: float, high: float) -> Any:
    if not low <= value <= high:  # NaN is nowhere
        raise bad_request(f"{name} {shown(value)}: {low:g} to {high:g} is allowed.", name)
    return value


def _at_least(name: str, value: int, low: int) -> int:
    if value < low:
        raise bad_request(f"{name} {shown(value)}: {low} or more is allowed.", name)
    return value


def shown(value: float) -> str:
    """A number of the client's in a sentence, however many digits it has."""
    return str(value) if -(10**18) <= value <= 10**18 else f"{'-' if value < 0 else ''}(very large)"
