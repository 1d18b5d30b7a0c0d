"""Every event and action survives the way to text and back; NaN does not get in; damage is told."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tierline.core.actions import Action, StartJob
from tierline.core.errors import StateUnusable
from tierline.core.events import Event, ProgressReported, SharesSet
from tierline.core.nouns import Report
from tierline.runtime.codec import (
    ACTION_TYPES,
    EVENT_TYPES,
    decode_actions,
    decode_event,
    encode_actions,
    encode_event,
)

INT63 = 2**63 - 1
# What JSON and the columns of SQLite can hold: text without lone surrogates, 64-bit integers, finite floats.
_BY_TYPE: dict[type, st.SearchStrategy[Any]] = {
    str: st.text(st.characters(exclude_categories=("Cs",)), max_size=20),
    int: st.integers(-INT63, INT63),
    float: st.floats(allow_nan=False, allow_infinity=False),
}
for kind, strategy in _BY_TYPE.items():
    st.register_type_strategy(kind, strategy)

events = st.one_of(*(st.from_type(kind) for kind in get_args(Event)))
actions = st.lists(st.one_of(*(st.from_type(kind) for kind in get_args(Action))), max_size=4)


@settings(max_examples=150, deadline=None)
@given(events)
def test_events_round_trip(event: Event) -> None:
    kind, body = encode_event(event)
    assert decode_event(kind, body) == event
    json.loads(body, parse_constant=pytest.fail)


@settings(max_examples=100, deadline=None)
@given(actions)
def test_actions_round_trip(given_actions: list[Action]) -> None:
    text = encode_actions(given_actions)
    assert decode_actions(text) == given_actions
    json.loads(text, parse_constant=pytest.fail)


def test_every_type_is_in_the_table() -> None:
    assert set(EVENT_TYPES.values()) == set(get_args(Event))
    assert set(ACTION_TYPES.values()) == set(get_args(Action))


def test_types_of_numbers_and_truth_values_in_parameters_survive() -> None:
    params = (("a", 1), ("b", 1.0), ("c", True), ("d", "1"))
    from tierline.core.events import JobSubmitted
    from tierline.core.nouns import Job

    event = JobSubmitted(Job("j", params=params))
    back = decode_event(*encode_event(event))
    assert isinstance(back, JobSubmitted)
    assert [type(value) for _, value in back.job.params] == [int, float, bool, str]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_numbers_without_json_are_refused(bad: float) -> None:
    with pytest.raises(ValueError):
        encode_event(SharesSet((("ann", bad),)))
    with pytest.raises(ValueError):
        encode_actions([StartJob("j", 1, ("cpu0",), False, "why", density=bad)])
    with pytest.raises(ValueError):
        encode_event(ProgressReported((Report("j", 1, bad, 0),)))


def test_a_field_that_an_older_version_did_not_write_has_its_default() -> None:
    assert decode_actions(
        '[{"type":"StartJob","job_id":"j","attempt":1,"device_ids":[],"resume":false,"reason":"r"}]'
    ) == [StartJob("j", 1, (), False, "r")]


@pytest.mark.parametrize(
    ("kind", "body"), [("JobExploded", "{}"), ("JobHeld", '{"job_id":"j"'), ("JobHeld", '{"job_id":3,"by":""}')]
)
def test_damaged_events_are_told(kind: str, body: str) -> None:
    with pytest.raises(StateUnusable, match=kind):
        decode_event(kind, body)


@pytest.mark.parametrize("text", ["[", '[{"type":"Nothing"}]', '[{"job_id":"j"}]', "null"])
def test_damaged_actions_are_told(text: str) -> None:
    with pytest.raises(StateUnusable):
        decode_actions(text)
