"""How answers are told: `chat.completion`, `text_completion`, and their chunks, as OpenAI and vLLM write them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import msgspec

from tierline.core.request import CHAT_PREFIX, COMPLETION_PREFIX, TokenLogprob
from tierline.core.serving_contracts import ModelText
from tierline.server.openai.answer import Answer, Piece
from tierline.server.openai.wish import Wish

Drawn = Sequence[tuple[int, TokenLogprob]]
_encode = msgspec.json.encode


class Shape(Protocol):
    """One request's way of telling."""

    def opening(self, answer: Answer) -> bytes | None:
        """The chunk before the first text of a choice, if there is one."""
        ...

    def chunk(self, answer: Answer, piece: Piece, usage: dict[str, Any] | None) -> bytes: ...

    def whole(self, answers: Sequence[Answer], pieces: Sequence[Sequence[Piece]], usage: dict[str, Any]) -> bytes: ...

    def usage_chunk(self, usage: dict[str, Any]) -> bytes: ...


def usage_of(prompt_tokens: int, completion_tokens: int, cached_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached_tokens},
    }


class _Shape:
    """What both shapes share. A chunk without log-probabilities or usage, by far the commonest, is put together from
    bytes that were encoded once."""

    prefix = ""
    kind = ""
    chunk_kind = ""
    before_text = b""
    after_text = b""

    def __init__(self, request_id: str, text: ModelText, wish: Wish) -> None:
        self._text = text
        self._wish = wish
        self._head = {"id": self.prefix + request_id, "object": self.kind, "created": int(time.time())}
        self._head["model"] = text.model.name
        self._chunk_head = self._head | {"object": self.chunk_kind}
        self._plain = _encode(self._chunk_head)[:-1] + b',"choices":[{"index":'

    def chunk(self, answer: Answer, piece: Piece, usage: dict[str, Any] | None) -> bytes:
        if piece.finish is None and usage is None and not piece.drawn:
            return b"%b%d%b%b%b" % (
                self._plain, answer.index, self.before_text, _encode(piece.text), self.after_text
            )  # fmt: skip
        choice = {"index": answer.index} | self.delta(piece.text)
        choice["logprobs"] = self.logprobs(answer, piece.drawn) if self._wish.logprobs is not None else None
        choice["finish_reason"] = piece.finish
        if piece.finish is not None:
            choice["stop_reason"] = piece.stop
        more = {} if usage is None else {"usage": usage}
        return _encode(self._chunk_head | {"choices": [choice]} | more)

    def whole(self, answers: Sequence[Answer], pieces: Sequence[Sequence[Piece]], usage: dict[str, Any]) -> bytes:
        choices = []
        for answer, parts in zip(answers, pieces, strict=True):
            drawn = [pair for piece in parts for pair in piece.drawn]
            told = self.message("".join(piece.text for piece in parts))
            logprobs = self.logprobs(answer, drawn) if self._wish.logprobs is not None else None
            end = {"logprobs": logprobs, "finish_reason": answer.finish, "stop_reason": parts[-1].stop}
            choices.append({"index": answer.index} | told | end)
        return _encode(self._head | {"choices": choices, "usage": usage})

    def usage_chunk(self, usage: dict[str, Any]) -> bytes:
        return _encode(self._chunk_head | {"choices": [], "usage": usage})

    def token_name(self, token: int) -> tuple[str, bytes]:
        text, raw = self._text.token_text(token)
        return (f"token_id:{token}", raw) if self._wish.tokens_as_ids else (text, raw)

    def delta(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def message(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def logprobs(self, answer: Answer, drawn: Drawn) -> dict[str, Any]:
        raise NotImplementedError


class ChatShape(_Shape):
    prefix = CHAT_PREFIX
    kind = "chat.completion"
    chunk_kind = "chat.completion.chunk"
    before_text = b',"delta":{"content":'
    after_text = b'},"logprobs":null,"finish_reason":null}]}'

    def opening(self, answer: Answer) -> bytes | None:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": answer.index, "delta": delta, "logprobs": None, "finish_reason": None}
        usage = {"usage": usage_of(answer.prompt_tokens, 0, answer.cached_tokens)} if self._wish.usage_always else {}
        return _encode(self._chunk_head | {"choices": [choice]} | usage)

    def delta(self, text: str) -> dict[str, Any]:
        return {"delta": {"content": text}}

    def message(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def logprobs(self, answer: Answer, drawn: Drawn) -> dict[str, Any]:
        def entry(token: int, logprob: float) -> dict[str, Any]:
            name, raw = self.token_name(token)
            return {"token": name, "logprob": max(logprob, LOWEST), "bytes": list(raw)}

        return {
            "content": [
                entry(token, found.logprob) | {"top_logprobs": [entry(*other) for other in found.top]}
                for token, found in drawn
            ]
        }


LOWEST = -9999.0
"""What JSON is told for a log-probability of minus infinity, as in vLLM."""


class CompletionShape(_Shape):
    prefix = COMPLETION_PREFIX
    kind = "text_completion"
    chunk_kind = "text_completion"
    before_text = b',"text":'
    after_text = b',"logprobs":null,"finish_reason":null}]}'

    def __init__(self, request_id: str, text: ModelText, wish: Wish) -> None:
        super().__init__(request_id, text, wish)
        self._offsets: dict[int, int] = {}

    def opening(self, answer: Answer) -> bytes | None:
        return None

    def delta(self, text: str) -> dict[str, Any]:
        return {"text": text}

    message = delta

    def logprobs(self, answer: Answer, drawn: Drawn) -> dict[str, Any]:
        """`text_offset` counts characters of the tokens' own texts from the beginning of the answer."""
        offset = self._offsets.get(answer.index, 0)
        offsets, names, tops = [], [], []
        for token, found in drawn:
            name, _ = self.token_name(token)
            offsets.append(offset)
            offset += len(self._text.token_text(token)[0])
            names.append(name)
            top = {self.token_name(other)[0]: max(logprob, LOWEST) for other, logprob in found.top}
            top.setdefault(name, max(found.logprob, LOWEST))
            tops.append(top)
        self._offsets[answer.index] = offset
        return {
            "text_offset": offsets,
            "token_logprobs": [max(found.logprob, LOWEST) for _, found in drawn],
            "tokens": names,
            "top_logprobs": tops,
        }
