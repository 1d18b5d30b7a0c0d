"""Requests by name: those under way and the last that have ended, for people who ask what became of one."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import Any

from tierline.core.nouns import NS_PER_S
from tierline.core.request import Request, TokensMade, is_called

log = logging.getLogger(__name__)
REMEMBERED = 4096  # of those that have ended
CLOSED = "closed"  # by the front door: the client has gone, or has all it wanted


@dataclass(slots=True)
class Entry:
    """Of its prompt the length alone, for it may be long, and it is its client's. Times by one clock, in ns; 0 = not yet.
    `end`: its finish reason or a word for what cut it off, "" = it has not ended."""

    request_id: str
    client_id: str
    prompt_tokens: int
    images: int
    came_ns: int
    first_ns: int = 0
    ended_ns: int = 0
    tokens: int = 0
    cached_tokens: int = 0
    end: str = ""

    def made(self, made: TokensMade) -> None:
        """Some tokens are told to the client."""
        self.first_ns = self.first_ns or time.monotonic_ns()
        self.tokens = made.first + len(made.tokens)
        self.cached_tokens = made.cached_tokens

    def told(self, now_ns: int) -> dict[str, Any]:
        """Seconds: `age_s` since it came, `first_s` until its first token, `took_s` until its end; None = not yet."""

        def after(time_ns: int) -> float | None:
            return (time_ns - self.came_ns) / NS_PER_S if time_ns else None

        return {
            "request_id": self.request_id,
            "client_id": self.client_id,
            "prompt_tokens": self.prompt_tokens,
            "images": self.images,
            "output_tokens": self.tokens,
            "cached_tokens": self.cached_tokens,
            "age_s": after(now_ns),
            "first_s": after(self.first_ns),
            "took_s": after(self.ended_ns),
            "end": self.end,
        }


class RequestLog:
    """For several threads."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._lock = threading.Lock()
        self._live: dict[str, Entry] = {}
        self._ended: deque[Entry] = deque(maxlen=remembered)

    def begin(self, request: Request) -> Entry:
        entry = Entry(
            request.request_id, request.client_id, len(request.prompt), len(request.images), time.monotonic_ns()
        )
        with self._lock:
            self._live[request.request_id] = entry
        return entry

    def end(self, entry: Entry, how: str, error: str = "") -> None:
        """`how`: `Entry.end`. `error`: one sentence, logged with both of its names."""
        if error:
            named = f" ({entry.client_id})" if entry.client_id else ""
            log.warning("Request %s%s: %s", entry.request_id, named, error)
        entry.ended_ns, entry.end = time.monotonic_ns(), how
        with self._lock:
            self._live.pop(entry.request_id, None)
            self._ended.append(entry)

    def find(self, name: str) -> list[dict[str, Any]]:
        """What is known of requests called `name`, by us, by their client or in the answer; those under way last."""
        now_ns = time.monotonic_ns()
        with self._lock:
            entries = [*self._ended, *self._live.values()]
        return [entry.told(now_ns) for entry in entries if is_called(name, entry.request_id, entry.client_id)]
