"""A serving run as JSON lines: what it ran under, then every event with the actions it caused. And the same once more.

The first line is `{"version": ..., "setting": ...}`, each other `{"at": ns, "event": [kind, fields], "actions": [...]}`.
Written before the actions are carried out, flushed and not synced: a record for people, not what a run is recovered from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import tierline
from tierline.core.actions import Action
from tierline.core.errors import StateUnusable
from tierline.core.events import Event
from tierline.runtime.codec import decode_actions, decode_event, encode_actions, encode_event
from tierline.runtime.replay import effects


class Handles(Protocol):
    """A scheduler."""

    def handle(self, now_ns: int, event: Any) -> Sequence[Action]: ...


class ServingRecord:
    """A `Journal`. `setting`: whatever makes the same scheduler again, JSON. Raises `StateUnusable` where the file cannot be
    written."""

    def __init__(self, path: Path, setting: dict[str, Any]) -> None:
        self._path = path
        try:
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            raise StateUnusable(f"The record {path} cannot be written: {error.strerror}.") from error
        self._write(json.dumps({"version": tierline.__version__, "setting": setting}))

    def append(self, entries: Sequence[tuple[int, Event, Sequence[Action]]]) -> None:
        self._write("\n".join(_line(*entry) for entry in entries))

    def _write(self, text: str) -> None:
        try:
            self._file.write(text + "\n")
            self._file.flush()
        except OSError as error:
            raise StateUnusable(f"The record {self._path} cannot be written: {error.strerror}.") from error

    def close(self) -> None:
        self._file.close()


def _line(now_ns: int, event: Event, actions: Sequence[Action]) -> str:
    kind, fields = encode_event(event)
    return f'{{"at":{now_ns},"event":[{json.dumps(kind)},{fields}],"actions":{encode_actions(actions)}}}'


@dataclass(frozen=True, slots=True)
class Replayed:
    """Events and actions compared; `differences`: events with other actions, `effects`: other than in their reasons. `first`
    says what the first one is."""

    events: int
    actions: int
    differences: int
    effects: int
    first: str


def setting_of(path: Path) -> dict[str, Any]:
    """What the run ran under. Raises `StateUnusable`."""
    with _opened(path) as file:
        head = _parsed(path, file.readline(), 1)
    setting = head.get("setting")
    if not isinstance(setting, dict):
        raise StateUnusable(f"{path} is no record of a serving run: its first line has no setting.")
    return setting


def replay_record(path: Path, build: Callable[[dict[str, Any]], Handles]) -> Replayed:
    """The recorded events through a fresh scheduler, the actions compared with those on record. Raises `StateUnusable`."""
    scheduler = build(setting_of(path))
    events = actions = differences = other_effects = 0
    first = ""
    for at_ns, event, recorded in read_record(path):
        computed = list(scheduler.handle(at_ns, event))
        events += 1
        actions += len(recorded)
        if computed != recorded:
            differences += 1
            other_effects += effects(computed) != effects(recorded)
            first = first or _difference(events, event, recorded, computed)
    return Replayed(events, actions, differences, other_effects, first)


def read_record(path: Path) -> Iterator[tuple[int, Event, list[Action]]]:
    """(time_ns, event, actions) in order. A last line that was cut off is left out. Raises `StateUnusable`."""
    with _opened(path) as file:
        next(file, "")
        for number, line in enumerate(file, 2):
            if not line.endswith("\n"):
                return
            row = _parsed(path, line, number)
            try:
                kind, fields = row["event"]
                yield row["at"], decode_event(kind, json.dumps(fields)), decode_actions(json.dumps(row["actions"]))
            except (KeyError, TypeError, ValueError) as error:
                raise StateUnusable(f"{path}, line {number}: not an event with its actions ({error}).") from error


def _opened(path: Path) -> Any:
    try:
        return path.open(encoding="utf-8")
    except OSError as error:
        raise StateUnusable(f"The record {path} cannot be read: {error.strerror}.") from error


def _parsed(path: Path, line: str, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise StateUnusable(f"{path}, line {number}: this is no record of a serving run ({error}).") from error
    if not isinstance(row, dict):
        raise StateUnusable(f"{path}, line {number}: this is no record of a serving run.")
    return row


def _difference(number: int, event: Event, recorded: Sequence[Action], computed: Sequence[Action]) -> str:
    for place in range(max(len(recorded), len(computed))):
        was = recorded[place] if place < len(recorded) else None
        now = computed[place] if place < len(computed) else None
        if was != now:
            return (
                f"event {number} ({type(event).__name__}), action {place + 1}: recorded {was or 'none'}, computed "
                f"{now or 'none'}"
            )
    return ""
