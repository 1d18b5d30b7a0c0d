"""Stop strings in text that arrives in pieces: the answer is the same however it was cut into tokens."""

from __future__ import annotations

from collections.abc import Sequence


class StopFinder:
    """Holds text back while it could be the beginning of a stop string. Of several strings the one that ends first
    counts, and of those that end together the longest: what would be found looking at each character as it comes.

    >>> finder = StopFinder(["END"])
    >>> finder.push("the E"), finder.push("N"), finder.push("D of it"), finder.hit
    ('the ', '', '', 'END')
    """

    def __init__(self, stops: Sequence[str], *, include: bool = False) -> None:
        self._stops = tuple(stops)
        self._include = include
        self._held = ""
        self.hit: str | None = None

    def push(self, text: str) -> str:
        """What of the text so far can be told. Once `hit` is set nothing follows."""
        if not self._stops:
            return text
        if self.hit is not None:
            return ""
        text = self._held + text
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            end, start, self.hit = min(found)
            self._held = ""
            return text[: end if self._include else start]
        keep = max(_overlap(text, stop) for stop in self._stops)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def skip(self, text: str) -> str:
        """Text that is not searched (before `min_tokens`)."""
        text, self._held = self._held + text, ""
        return text

    def finish(self) -> str:
        """What was held back and, as the answer ends here, is no stop string."""
        text, self._held = self._held, ""
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins, itself excluded."""
    for size in range(min(len(stop) - 1, len(text)), 0, -1):
        if text.endswith(stop[:size]):
            return size
    return 0
