"""One answer on its way to the client: tokens made -> text, stop strings, log-probabilities, the end."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.errors import RequestLost
from tierline.core.request import FinishReason, TokenLogprob, TokensMade
from tierline.core.serving_contracts import ModelText
from tierline.server.openai.stops import StopFinder
from tierline.server.openai.wish import Wish


@dataclass(frozen=True, slots=True)
class Piece:
    """What one message of the generator adds. `stop` is the string or token that ended the answer, where one did."""

    text: str
    drawn: tuple[tuple[int, TokenLogprob], ...]
    finish: FinishReason | None
    stop: str | int | None = None


class Answer:
    """Choice `index` of a request; `tokens` counts what was told, `cached_tokens` what the prompt cost nothing for."""

    def __init__(self, text: ModelText, wish: Wish, index: int, prompt_tokens: int, min_tokens: int) -> None:
        self.index = index
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        self.cached_tokens = 0
        self.finish: FinishReason | None = None
        self._stream = text.stream(skip_special_tokens=wish.skip_special)
        self._stops = StopFinder(wish.stops, include=wish.include_stop)
        self._silent_ends = frozenset() if wish.include_stop else frozenset(wish.sampling.stop_token_ids)
        self._named_ends = frozenset(wish.sampling.stop_token_ids)
        self._min_tokens = min_tokens
        self._wants_logprobs = wish.logprobs is not None

    def take(self, made: TokensMade) -> Piece:
        """Raises `RequestLost` where the generator gave up, or lost tokens."""
        if made.finish in ("error", "abort"):
            raise RequestLost(made.reason or "The request could not be finished.")
        skip = self.tokens - made.first
        if skip < 0:
            raise RequestLost(f"Tokens {self.tokens} to {made.first - 1} of the answer were lost.")
        self.cached_tokens = max(self.cached_tokens, made.cached_tokens)
        text: list[str] = []
        drawn: list[tuple[int, TokenLogprob]] = []
        last = len(made.tokens) - 1
        for position in range(skip, len(made.tokens)):
            token = made.tokens[position]
            self.tokens += 1
            if self._wants_logprobs and made.logprobs:
                drawn.append((token, made.logprobs[position]))
            if position == last and made.finish == "stop" and token in self._silent_ends:
                continue
            text.append(self._search(self._stream.push(token)))
            if self._stops.hit is not None:
                self.finish = "stop"
                return Piece("".join(text), tuple(drawn), "stop", self._stops.hit)
        if made.finish is None:
            return Piece("".join(text), tuple(drawn), None)
        return self._end(made, text, tuple(drawn))

    def _end(self, made: TokensMade, text: list[str], drawn: tuple[tuple[int, TokenLogprob], ...]) -> Piece:
        self.finish = made.finish
        text.append(self._search(self._stream.finish()))
        if self._stops.hit is not None:
            self.finish = "stop"
            return Piece("".join(text), drawn, "stop", self._stops.hit)
        text.append(self._stops.finish())
        ended_by = made.tokens[-1] if made.tokens and made.finish == "stop" else None
        return Piece("".join(text), drawn, made.finish, ended_by if ended_by in self._named_ends else None)

    def _search(self, text: str) -> str:
        if self.tokens < self._min_tokens:
            return self._stops.skip(text)
        return self._stops.push(text)
