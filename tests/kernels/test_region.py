"""A region's records as dataclasses, and what is computed from them."""

from __future__ import annotations

import importlib.util
import itertools
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tierline.cli import region_tables
from tierline.cli.kernels import course_lines, show
from tierline.core.errors import InvalidInput, MissingNative, NotFound
from tierline.kernels import course, picture, region, trace
from tierline.kernels.foreign_profiles import learned_profiles
from tierline.kernels.profile import format_profiles, parse_profiles

_SPEC = importlib.util.spec_from_file_location("synthetic", Path(__file__).with_name("synthetic.py"))
SIMULATED = Path("/nowhere/simulated-h200.region")


synthetic = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(synthetic)


@pytest.fixture
def seen() -> region.RegionSeen:
    return region.seen(synthetic.region(4), SIMULATED)


def test_records_in_shares_and_names(seen: region.RegionSeen) -> None:
    serve, train = seen.clients
    assert (serve.label, serve.priority, serve.is_here, serve.waits) == (
        "serve",
        "high",
        True,
        (region.WaitBucket(1 << 17, 2),),
    )
    assert serve.speed == pytest.approx(0.9)
    assert serve.corun_share == pytest.approx(0.25)
    assert serve.mean_wait_ns == serve.wait_ns / 2
    assert (train.waits, train.mean_wait_ns) == ((), 0.0)
    assert seen.by_time[0].name == "sm90_gemm_128x128"
    assert seen.by_time[0].stretch == pytest.approx(1.1)
    assert seen.waits == (region.WaitedFor("serve", "train", serve.wait_ns),)
    assert (seen.alpha, seen.peak_sm_util, seen.is_cut) == (0.95, 0.42, False)
    assert seen.device == "h200 (simulated device)"
    assert {change.kernel for change in seen.changes} == set(synthetic.NAMES.values())


def test_speed_is_unknown_before_anything_was_observed(seen: region.RegionSeen) -> None:
    row = synthetic.client(0, "a", "high", 0, 0)
    row.statistics.observed_busy_ns = row.statistics.starved_ns = 0
    fresh = region._client(row, "a")
    assert (fresh.speed, fresh.corun_share) == (None, 0.0)


def test_clients_of_one_name_are_told_apart_and_added_up() -> None:
    made = synthetic.region(1)
    made.clients = lambda: [
        synthetic.client(0, "a", "high", 3, 0),
        synthetic.client(1, "a", "high", 4, 0),
        synthetic.client(2, "b", "high", 5, 0, pid=9),
        synthetic.client(3, "b", "high", 6, 9, pid=9, state=2),
    ]
    clients = region.seen(made, SIMULATED).clients
    assert [client.label for client in clients] == ["a@100", "a@101", "b#2", "b#3"]
    both = region.together(clients[2:])
    assert (both.launches, both.wait_ns, both.is_here) == (11, 9, True)
    assert both.waits == (region.WaitBucket(1 << 17, 3),)
    assert not clients[3].is_here


def test_no_file_no_module_no_region(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: ModuleType) -> None:
    with pytest.raises(NotFound, match="tierline run"):
        region.read_region(tmp_path / "none.region")
    path = tmp_path / "bad.region"
    path.write_bytes(b"nonsense")
    with pytest.raises(InvalidInput, match=r"cannot use the region .*: it is not a region of this version"):
        region.read_region(path)
    monkeypatch.setitem(sys.modules, "tierline._native", None)
    with pytest.raises(MissingNative, match=r"tierline\._native is missing.*install it again"):
        region.read_region(path)


# ---- the course of both sums -------------------------------------------------------------------------------------------


def test_the_mean_over_time_keeps_the_area(seen: region.RegionSeen) -> None:
    for stretches in (1, 7, 100):
        found = course.course(seen, stretches)
        assert len(found.sm_mean) == stretches
        area = sum(found.sm_mean) * found.stretch_ns
        assert area == pytest.approx(_area(seen), rel=1e-6)
        assert max(found.sm_peak) == max(change.sm_util for change in seen.changes)
        assert all(mean <= peak + 1e-9 for mean, peak in zip(found.bw_mean, found.bw_peak, strict=True))


def _area(seen: region.RegionSeen) -> float:
    changes = [change for change in seen.changes if change.kind != "waits"]
    pairs = itertools.pairwise(changes)
    return sum(a.sm_util * (b.at_ns - a.at_ns) for a, b in pairs)


def test_a_sum_that_lasted_no_time_is_no_peak() -> None:
    made = synthetic.region(1)
    first = made.trace()[0]
    spike = type(first)(**(vars(first) | {"sm_ppm": 2_000_000}))
    made.trace = lambda changes=made.trace: [spike, *changes()]
    assert max(course.course(region.seen(made, SIMULATED), 10).sm_peak) < 1


def test_a_window_and_an_empty_trace(seen: region.RegionSeen) -> None:
    begin = seen.changes[0].at_ns
    part = course.course(seen, 4, (begin, begin + 400_000))
    assert part.sm_mean == pytest.approx((0.83,) * 4)
    empty = synthetic.region(0)
    assert course.course(region.seen(empty, SIMULATED), 4).sm_mean == ()
    assert course_lines(region.seen(empty, SIMULATED)) == ["The trace is empty."]


def test_bars_of_sums_beyond_the_device_are_scaled(seen: region.RegionSeen) -> None:
    assert "0 to 100 %:" in course_lines(seen)[0]
    made = synthetic.region(4)
    for change in made.trace():
        change.sm_ppm *= 4
    assert "0 to 332 %:" in course_lines(region.seen(made, SIMULATED))[0]


def test_bars() -> None:
    assert course.bars([-1, 0, 0.5, 1, 9]) == "  ▄██"


# ---- the timeline ------------------------------------------------------------------------------------------------------


def test_the_timeline_is_of_the_trace_event_format(seen: region.RegionSeen, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    trace.write_trace(seen, path)
    record = json.loads(path.read_text())
    assert record["otherData"]["device"] == "h200 (simulated device)"
    events = record["traceEvents"]
    needed = {"M": {"args"}, "X": {"dur", "cat", "args"}, "C": {"args"}}
    for event in events:
        assert {"ph", "name", "pid", "tid", "ts"} | needed[event["ph"]] <= event.keys()
        assert event["ts"] >= 0
    named = {event["pid"] for event in events if event["name"] == "process_name"}
    threads = {(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"}
    slices = [event for event in events if event["ph"] == "X"]
    assert {event["pid"] for event in events} == named
    assert {(event["pid"], event["tid"]) for event in slices} <= threads
    counters = {event["name"] for event in events if event["ph"] == "C"}
    assert counters == {"SM sum", "bandwidth sum", "SM limit", "bandwidth limit"}
    assert all(list(event["args"]) == ["share"] for event in events if event["ph"] == "C")
    times = [event["ts"] for event in events if event["ph"] != "M"]
    assert times == sorted(times)


def test_slices_are_microseconds_and_do_not_overlap_on_a_stream(seen: region.RegionSeen) -> None:
    slices = [event for event in trace.trace_events(seen) if event["ph"] == "X"]
    gemm = next(event for event in slices if event["name"] == "sm90_gemm_128x128")
    assert (gemm["ts"], gemm["dur"], gemm["args"]["why"]) == (0.0, 400.0, "alone")
    waits = [event for event in slices if event["tid"] % 2 == 0]
    assert [(event["dur"], event["args"]["why"]) for event in waits] == [(200.0, "sm_limit")] * 2
    for thread in {(event["pid"], event["tid"]) for event in slices}:
        mine = [event for event in slices if (event["pid"], event["tid"]) == thread]
        for one, two in itertools.pairwise(mine):
            assert one["ts"] + one["dur"] <= two["ts"] + 1e-6


def changes(*rows: tuple[int, str, int, int, int]) -> list[object]:
    """Of (time, kind, stream, kernel, SM sum in ppm); a stream is a client."""
    one = vars(synthetic.region(1).trace()[0]) | {"bw_ppm": 0}
    return [
        SimpleNamespace(**(one | {"at_ns": at, "kind": kind, "client": s, "stream": s, "key": key, "sm_ppm": sm}))
        for at, kind, s, key, sm in rows
    ]


def slices_of(trace_rows: list[object]) -> list[tuple[float, float, int]]:
    made = synthetic.region(1)
    made.trace = lambda: trace_rows
    events = trace.trace_events(region.seen(made, SIMULATED))
    return [(event["ts"], event["dur"], event["args"]["launches"]) for event in events if event["ph"] == "X"]


def test_launches_queued_on_a_stream_run_one_after_another() -> None:
    a, b = synthetic.GEMM, synthetic.NORM
    rows = changes(
        (1000, "ended", 0, a, 0),  # its beginning has left the ring
        (2000, "admitted", 0, a, 500),
        (2500, "admitted", 0, b, 500),
        (4000, "ended", 0, a, 300),
        (5000, "ended", 0, b, 0),
    )
    assert slices_of(rows) == [(1.0, 2.0, 1), (3.0, 1.0, 1)]


def test_an_end_may_stand_for_several_launches_and_idle_time_is_not_covered() -> None:
    a, b = synthetic.GEMM, synthetic.NORM
    rows = changes(
        (0, "admitted", 1, b, 200),
        (1000, "admitted", 0, a, 700),
        (1100, "admitted", 0, a, 700),
        (1200, "admitted", 0, a, 700),
        (3000, "ended", 0, a, 200),  # what the stream had added is gone: all three are over
        (8000, "admitted", 0, a, 700),
        (9000, "ended", 0, a, 200),
        (9500, "ended", 1, b, 0),
    )
    assert slices_of(rows) == [(0.0, 9.5, 1), (1.0, 2.0, 3), (8.0, 1.0, 1)]


def test_a_trace_that_begins_in_the_middle_finds_its_feet() -> None:
    a = synthetic.GEMM
    rows = changes(
        (0, "admitted", 1, a, 900),  # 500 of it are of stream 0, whose launches came before
        (100, "ended", 0, a, 400),
        (200, "admitted", 0, a, 900),
        (300, "admitted", 0, a, 900),
        (400, "ended", 0, a, 900),
        (500, "ended", 0, a, 400),
        (900, "ended", 1, a, 0),
    )
    assert slices_of(rows) == [(0.0, 0.9, 1), (0.2, 0.2, 1), (0.4, 0.1, 1)]


def test_a_timeline_without_changes_still_opens(tmp_path: Path) -> None:
    trace.write_trace(region.seen(synthetic.region(0), SIMULATED), tmp_path / "t.json")
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"][0]["ph"] == "M"
    with pytest.raises(InvalidInput, match="cannot be written"):
        trace.write_trace(region.seen(synthetic.region(0), SIMULATED), tmp_path / "no" / "t.json")


# ---- picture and tables ------------------------------------------------------------------------------------------------


def test_the_picture_is_a_png(seen: region.RegionSeen, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    picture.draw(seen, tmp_path / "p.png", (0.0, 2.5))
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("wrong", ["no trace", "no folder", "no format", "no window"])
def test_what_keeps_a_picture_from_being_drawn(seen: region.RegionSeen, tmp_path: Path, wrong: str) -> None:
    pytest.importorskip("matplotlib")
    shown = region.seen(synthetic.region(0), SIMULATED) if wrong == "no trace" else seen
    path = {"no folder": tmp_path / "no" / "p.png", "no format": tmp_path / "p.xyz"}.get(wrong, tmp_path / "p.png")
    with pytest.raises(InvalidInput):
        picture.draw(shown, path, (3.0, 2.0) if wrong == "no window" else None)


def test_the_report_says_what_a_newcomer_asks(seen: region.RegionSeen, capsys: pytest.CaptureFixture[str]) -> None:
    show(seen, top=2)
    out = capsys.readouterr().out
    for said in (
        "h200 (simulated device) · policy interference · mode strict",
        "3.0 GiB of 8.0 GiB",
        "Who waited for whom: the row for the column",
        "FOR train",
        "Kernels by time: 2 of 3",
        "limit 95%",
        "never over a limit",
        "Programs that died without leaving, their share given back: 1",
    ):
        assert said in out
    assert out.index("sm90_gemm") < out.index("rms_norm")
    assert "flash_fwd" not in out


def test_excess_is_told(seen: region.RegionSeen) -> None:
    made = synthetic.region(1)
    rows = made.clients()
    rows[0].statistics.excess = 3
    made.clients = lambda: rows
    rows[0].statistics.lost_ns = 40_000
    told = region_tables.sums_lines(region.seen(made, SIMULATED))
    assert told[1:] == ["Over a limit at 3 admissions.", "serve lost 40.0µs of 1.00ms busy time to company (4.0%)."]


def test_kernels_that_ran_in_graphs_only_are_not_listed() -> None:
    made = synthetic.region(1)
    made.kernels = lambda: [synthetic.kernel(synthetic.GEMM, 0), synthetic.kernel(synthetic.NORM, 2)]
    shown = region.seen(made, SIMULATED)
    assert [kernel.launches for kernel in region_tables.launched(shown)] == [2]
    assert len(region_tables.kernel_rows(shown, 10)) == 1


def test_memory_of_a_client_that_has_left_is_not_told_as_nothing() -> None:
    made = synthetic.region(1)
    rows = made.clients()
    rows[0].state, rows[0].memory_bytes = 2, 0
    made.clients = lambda: rows
    assert region_tables.client_cells(region.seen(made, SIMULATED).clients[0])[-1] == "cap 8.0 GiB"


def test_json_holds_the_numbers(seen: region.RegionSeen) -> None:
    found = json.loads(json.dumps(region_tables.as_json(seen, kernels=1)))
    assert found["simulated"] is True
    assert found["clients"][0]["speed"] == pytest.approx(0.9)
    assert [kernel["name"] for kernel in found["kernels"]] == ["sm90_gemm_128x128"]
    assert found["kernels"][0]["key"] == "00000000000000b2"
    assert found["waits"] == [{"waiter": "serve", "blamed": "train", "wait_ns": 400_000}]


def test_what_was_learnt_is_a_profile(seen: region.RegionSeen) -> None:
    rows = learned_profiles(seen)
    assert [row.name for row in rows] == [kernel.name for kernel in seen.by_time]
    gemm = rows[0]
    assert (gemm.key, gemm.sm_util, gemm.duration_ns, gemm.source) == (synthetic.GEMM, 0.83, 400_000, "roofline")
    assert gemm.waves == pytest.approx(264 * 4 / (2 * 132))
    assert parse_profiles(format_profiles(rows), "x") == rows
    made = synthetic.region(1)
    made.kernels = lambda: [synthetic.kernel(synthetic.GEMM, 1, source="learning")]
    assert learned_profiles(region.seen(made, SIMULATED)) == []


def test_the_loaded_module_is_the_one_of_this_package(native: ModuleType) -> None:
    from tierline.kernels import native as adapter

    assert adapter.load() is native
