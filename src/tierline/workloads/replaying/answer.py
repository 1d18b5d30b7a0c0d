"""One streamed answer as it comes: when its first and last tokens came, how many there were, what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tierline.core.served_outcome import FINISHED, UNFINISHED, ServedOutcome
from tierline.core.served_trace import TracedRequest

TAIL_BYTES = 8192  # an answer's end holds its usage and any error
KEPT_BYTES = 4096
SEPARATOR = b"\n\n"
DONE = b"data: [DONE]"
REFUSED = (429, 503)
MESSAGE_CHARACTERS = 300


class Answer:
    """A `Sink` for a stream of server-sent events, as OpenAI's. Only events before the first text and those at the end are
    decoded; what lies between is dropped unseen. `message` says what the server told of an error."""

    def __init__(self, due_ns: int, request: TracedRequest, done: Callable[[Answer], None]) -> None:
        self.due_ns = due_ns
        self._request = request
        self._done = done
        self._kept = b""
        self._status = 0
        self._complete = False
        self.sent_ns = -1
        self.first_ns = -1
        self.ended_ns = -1
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.kind = UNFINISHED
        self.message = ""

    def begun(self, status: int) -> None:
        self._status = status

    def body(self, data: bytes, now_ns: int) -> None:
        if self._status == 200 and self.first_ns < 0:
            *events, self._kept = (self._kept + data).replace(b"\r\n", b"\n").split(SEPARATOR)
            for number, event in enumerate(events):
                if self.first_ns < 0 and _says_something(self._take(event)):
                    self.first_ns = now_ns
                    self._kept = SEPARATOR.join([*events[number + 1 :], self._kept])
                    break
        elif len(self._kept) < TAIL_BYTES:
            self._kept += data
        else:
            self._kept = self._kept[-KEPT_BYTES:] + data

    def ended(self, error: str, now_ns: int) -> None:
        self.ended_ns = now_ns
        if error:
            self.kind = error
        elif self._status != 200:
            self.kind = "refused" if self._status in REFUSED else f"http_{self._status}"
            self.message = sentence(decoded(self._kept)) or self._kept[:MESSAGE_CHARACTERS].decode(errors="replace")
        else:
            kept = self._kept.replace(b"\r\n", b"\n").strip()
            self._complete |= kept.endswith(DONE)
            for event in kept.split(SEPARATOR):
                if b'"usage"' in event or b'"error"' in event:
                    self._take(event)
            self.kind = (
                "error"
                if self.message
                else "broken"
                if not self._complete
                else FINISHED
                if self.first_ns >= 0
                else "empty"
            )
        if self.kind == FINISHED and not self.output_tokens:
            self.output_tokens = self._request.output_tokens  # the server tells no usage; it was told to make so many
        self._done(self)

    def abandon(self, now_ns: int) -> None:
        """The run ends before the answer does."""
        self.ended_ns = now_ns

    def outcome(self, zero_ns: int) -> ServedOutcome:
        """On the clock that is 0 at `zero_ns`."""
        return ServedOutcome(
            arrived_ns=self.due_ns - zero_ns,
            first_token_ns=self.first_ns - zero_ns if self.first_ns >= 0 else -1,
            finished_ns=self.ended_ns - zero_ns if self.ended_ns >= 0 else -1,
            output_tokens=self.output_tokens,
            prompt_tokens=self.prompt_tokens or self._request.prompt_tokens,
            images=len(self._request.images),
            outcome=self.kind,
            stream=self._request.stream,
        )

    def _take(self, event: bytes) -> dict[str, Any]:
        """What one event says; usage and errors are kept."""
        line = event.strip()
        if line == DONE:
            self._complete = True
        if not line.startswith(b"data:") or line == DONE:
            return {}
        told = decoded(line[5:])
        usage = told.get("usage")
        if isinstance(usage, dict):
            self.prompt_tokens = int(usage.get("prompt_tokens") or 0)
            self.output_tokens = int(usage.get("completion_tokens") or 0)
        if told.get("error"):
            self.message = sentence(told) or "The stream told an error without words."
        return told


def _says_something(told: dict[str, Any]) -> bool:
    """Whether a token came with it: text, or an end."""
    for choice in told.get("choices") or ():
        delta = choice.get("delta") or {}
        if delta.get("content") or delta.get("reasoning_content") or choice.get("text") or choice.get("finish_reason"):
            return True
    return False


def decoded(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def sentence(told: dict[str, Any]) -> str:
    """The message of an error in OpenAI's shape, or FastAPI's."""
    error = told.get("error", told)
    said = (error.get("message") or error.get("detail") or "") if isinstance(error, dict) else error
    return str(said)[:MESSAGE_CHARACTERS]
