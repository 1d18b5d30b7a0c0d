"""Requests that wait in the scheduler for an instance with room, in the order of the routing policy's key."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Container, Iterator

from tierline.core.routing_view import MODALITIES, Modality, RequestView
from tierline.schedulers.serving_state import Live

Key = tuple[float, ...]
Entry = tuple[Key, int, Live, RequestView]  # by key, then by number, of which no two are alike


class WaitingLine:
    """One line a modality, so that a crowd of one for which there is no room hides nobody of the other. `order`: the policy's
    key of a request now. Keys are looked up when one comes, and again when it is first; `reorder` does all."""

    def __init__(self, order: Callable[[RequestView], Key]) -> None:
        self._order = order
        self._lines: dict[Modality, list[Entry]] = {modality: [] for modality in MODALITIES}
        self._entries: dict[str, Entry] = {}
        self._count = 0
        self.prefill_s: dict[Modality, float] = dict.fromkeys(MODALITIES, 0.0)  # of all who wait, with their images

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._entries

    def count(self, modality: Modality) -> int:
        return len(self._lines[modality])

    def waiting(self, modality: Modality) -> Iterator[Live]:
        """In order."""
        return (entry[2] for entry in self._lines[modality])

    def add(self, live: Live) -> None:
        self._count += 1
        view = live.view()  # of what does not change while it waits
        self._insert(live, (self._order(view), self._count, live, view))
        self.prefill_s[live.modality] += live.prefill_s + live.encode_s

    def remove(self, live: Live) -> None:
        entry = self._entries.pop(live.request_id, None)
        if entry is not None:
            line = self._lines[live.modality]
            del line[bisect.bisect_left(line, entry[:2])]
            left = self.prefill_s[live.modality] - live.prefill_s - live.encode_s
            self.prefill_s[live.modality] = left if line else 0.0

    def first(self, apart_from: Container[Modality]) -> Live | None:
        """Who is first of all, of these modalities."""
        heads = [self._head(modality) for modality in MODALITIES if modality not in apart_from]
        entries = [entry for entry in heads if entry is not None]
        return min(entries)[2] if entries else None

    def reorder(self) -> None:
        for line in self._lines.values():
            moved = False
            for at, (key, place, live, view) in enumerate(line):
                now = self._order(view)
                if now != key:
                    line[at] = self._entries[live.request_id] = (now, place, live, view)
                    moved = True
            if moved:
                line.sort()

    def _head(self, modality: Modality) -> Entry | None:
        """Its key may have grown since it came, as that of one who is too late now: then another is first."""
        line = self._lines[modality]
        while line:
            key, place, live, view = line[0]
            now = self._order(view)
            if now <= key:
                return line[0]
            del line[0]
            self._insert(live, (now, place, live, view))
        return None

    def _insert(self, live: Live, entry: Entry) -> None:
        self._entries[live.request_id] = entry
        bisect.insort(self._lines[live.modality], entry)
