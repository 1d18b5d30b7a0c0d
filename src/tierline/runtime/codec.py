"""Events and actions as (kind, JSON text) and back, from one table of types.

The kind is the name of the type. Fields that hold their default are written too, so that an old record keeps its
meaning when a default changes; fields that a later version adds are read as their default. NaN and infinity have no
JSON and are refused: a loss that is not finite is None by then.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, TypeVar, get_args

import msgspec

from tierline.core.actions import Action
from tierline.core.errors import StateUnusable
from tierline.core.events import Event
from tierline.core.instance_actions import Tell
from tierline.core.request import TokenLogprob
from tierline.core.serving_events import InstanceSaid

EVENT_TYPES: dict[str, type] = {kind.__name__: kind for kind in get_args(Event)}
ACTION_TYPES: dict[str, type] = {kind.__name__: kind for kind in get_args(Action)}
TELL_TYPES: dict[str, type] = {kind.__name__: kind for kind in get_args(Tell)}

T = TypeVar("T")
_to_json = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode


def encode_event(event: Event) -> tuple[str, str]:
    """(kind, JSON object). Raises `ValueError` when it holds NaN or infinity, which is a fault of ours."""
    fields = msgspec.to_builtins(event)
    if isinstance(event, InstanceSaid):
        fields["message"] = {"type": type(event.message).__name__, **fields["message"]}
    return type(event).__name__, _to_json(fields)


def decode_event(kind: str, body: str) -> Event:
    """Raises `StateUnusable` when the record is damaged or of a kind nobody knows."""
    if kind == InstanceSaid.__name__:
        return _decode(EVENT_TYPES, "event", kind, lambda _: _said(body))  # type: ignore[no-any-return]
    event: Event = _decode(EVENT_TYPES, "event", kind, lambda shape: msgspec.json.decode(body, type=shape))
    return event


class _Said(msgspec.Struct, frozen=True):
    """An `InstanceSaid` as it is written: its message with the kind under `type`."""

    name: str
    message: dict[str, Any]
    logprobs: tuple[TokenLogprob, ...] = ()


def _said(body: str) -> InstanceSaid:
    row = msgspec.json.decode(body, type=_Said)
    kind = str(row.message.pop("type", ""))
    said = _decode(TELL_TYPES, "word of an instance", kind, lambda shape: msgspec.convert(row.message, shape))
    return InstanceSaid(row.name, said, row.logprobs)


def encode_actions(actions: Sequence[Action]) -> str:
    """A JSON array of objects, each with its kind under `type`; `[]` when there are none."""
    if not actions:
        return "[]"
    return _to_json([{"type": type(action).__name__, **msgspec.to_builtins(action)} for action in actions])


def decode_actions(text: str) -> list[Action]:
    """Raises `StateUnusable` as `decode_event` does."""
    if text == "[]":
        return []
    try:
        rows = msgspec.json.decode(text, type=list[dict[str, Any]])
    except msgspec.DecodeError as error:
        raise StateUnusable(f"A record of actions cannot be read: {error}.") from error
    return [_action(row) for row in rows]


def _action(row: dict[str, Any]) -> Action:
    kind = str(row.pop("type", ""))
    action: Action = _decode(ACTION_TYPES, "action", kind, lambda shape: msgspec.convert(row, shape))
    return action


def _decode(table: dict[str, type], what: str, kind: str, read: Any) -> Any:
    shape = table.get(kind)
    if shape is None:
        raise StateUnusable(
            f"The record of an {what} has the unknown kind '{kind}'; known: {', '.join(sorted(table))}."
        )
    try:
        return read(shape)
    except msgspec.DecodeError as error:  # ValidationError is one too
        raise StateUnusable(f"The record of an {what} of kind '{kind}' cannot be read: {error}.") from error
