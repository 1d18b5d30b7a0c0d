"""Stream capture on the fake driver: what the real one forbids is forbidden, with its statuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from .fake_driver_runs import Runs

UNSUPPORTED, INVALIDATED, UNJOINED, ISOLATION, IMPLICIT = 900, 901, 904, 905, 906
CAPTURED_EVENT, WRONG_THREAD, ILLEGAL_STATE = 907, 908, 401


@pytest.fixture(scope="module", params=["virtual", "wall"])
def seen(native_bin, fake_driver: Path, request: pytest.FixtureRequest) -> Any:
    return Runs(native_bin, fake_driver)("capture", FAKECUDA_CLOCK=request.param)


def test_a_graph_of_two_branches_is_captured_while_other_streams_are_busy(seen: Any) -> None:
    assert (seen["nodes"], seen["side_captures"]) == (3, True)


@pytest.mark.parametrize(
    ("case", "query", "end"),
    [
        ("global_asked_globally", UNSUPPORTED, INVALIDATED),
        ("global_asked_thread_local", 0, 0),
        ("global_asked_relaxed", 0, 0),
        ("thread_local_asked_globally", 0, 0),
        ("relaxed_asked_globally", 0, 0),
    ],
)
def test_an_event_query_of_another_thread(seen: Any, case: str, query: int, end: int) -> None:
    assert seen[case] == {"query": query, "end": end, "graph": end == 0}


@pytest.mark.parametrize(
    ("case", "call", "end"),
    [
        ("synchronize", UNSUPPORTED, INVALIDATED),
        ("query", UNSUPPORTED, INVALIDATED),
        ("allocate", UNSUPPORTED, INVALIDATED),
        ("context", UNSUPPORTED, INVALIDATED),
        ("captured_event", CAPTURED_EVENT, INVALIDATED),
        ("outside_event", ISOLATION, INVALIDATED),
        ("again", ILLEGAL_STATE, 0),
        ("unjoined", 0, UNJOINED),
        ("other_thread_ends", WRONG_THREAD, 0),
    ],
)
def test_a_broken_rule(seen: Any, case: str, call: int, end: int) -> None:
    assert seen[case] == {"call": call, "end": end, "graph": end == 0}


def test_the_legacy_stream(seen: Any) -> None:
    assert seen["implicit"] == IMPLICIT
    assert seen["after_invalidation"] == INVALIDATED
    assert seen["legacy"] == UNSUPPORTED
    assert seen["not_capturing"] == ILLEGAL_STATE
