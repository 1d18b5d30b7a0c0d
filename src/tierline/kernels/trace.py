"""A region's trace as a timeline that Perfetto and chrome://tracing open.

The Trace Event Format: one process a client (process 0 is the device), one thread a stream for what ran and one for what
waited, and two counters for the sums over all clients. Times are microseconds from the first change. The trace tells when
launches were admitted and when they had ended; a stream runs one kernel at a time, so a slice begins when its launch was
admitted or the one before it ended, whichever is later.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tierline.core.errors import InvalidInput
from tierline.kernels.region import Change, RegionSeen

DEVICE = 0
Event = dict[str, Any]


def trace_events(region: RegionSeen) -> list[Event]:
    """Metadata first, then all events in the order of their times."""
    if not region.changes:
        return list(_names(region))
    begin_ns = region.changes[0].at_ns
    events = [*_counters(region, begin_ns), *_slices(region, begin_ns)]
    return [*_names(region), *sorted(events, key=lambda event: float(event["ts"]))]


def write_trace(region: RegionSeen, path: Path) -> None:
    """Raises `InvalidInput` when the file cannot be written."""
    record = {
        "displayTimeUnit": "ns",
        "otherData": {"device": region.device, "policy": region.policy, "mode": region.mode},
        "traceEvents": trace_events(region),
    }
    try:
        path.write_text(json.dumps(record, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise InvalidInput(f"'{path}' cannot be written: {error.strerror or error}.") from None


def _names(region: RegionSeen) -> Iterator[Event]:
    yield _meta("process_name", DEVICE, 0, name=f"{region.device}, policy {region.policy}, mode {region.mode}")
    yield _meta("process_sort_index", DEVICE, 0, sort_index=0)
    used = sorted({(change.client, change.stream) for change in region.changes if change.client >= 0})
    for row, client in enumerate(region.clients):
        yield _meta("process_name", row + 1, 0, name=f"{client.label} ({client.priority})")
        yield _meta("process_sort_index", row + 1, 0, sort_index=row + 1)
    for row, stream in used:
        for thread, what in ((_runs(stream), "runs"), (_waits(stream), "waits")):
            yield _meta("thread_name", row + 1, thread, name=f"stream {stream} {what}")
            yield _meta("thread_sort_index", row + 1, thread, sort_index=thread)


def _counters(region: RegionSeen, begin_ns: int) -> Iterator[Event]:
    ends = (region.changes[0].at_ns, region.changes[-1].at_ns)
    for name, limit in (("SM limit", region.alpha), ("bandwidth limit", region.beta)):
        for at_ns in ends:
            yield _counter(name, at_ns - begin_ns, limit)
    for change in region.changes:
        if change.kind != "waits":
            yield _counter("SM sum", change.at_ns - begin_ns, change.sm_util)
            yield _counter("bandwidth sum", change.at_ns - begin_ns, change.bw_util)


def _slices(region: RegionSeen, begin_ns: int) -> Iterator[Event]:
    admitted: dict[tuple[int, int], deque[Change]] = {}
    waiting: dict[tuple[int, int, int], Change] = {}
    free_at_ns: dict[tuple[int, int], int] = {}
    for change in region.changes:
        stream, launch = (change.client, change.stream), (change.client, change.stream, change.key)
        if change.kind == "waits":
            waiting[launch] = change
        elif change.kind == "admitted":
            admitted.setdefault(stream, deque()).append(change)
            if (since := waiting.pop(launch, None)) is not None:
                yield _slice(since, since.at_ns, change.at_ns, begin_ns, _waits(change.stream), why=since.reason)
        elif queue := admitted.get(stream):  # else its beginning has left the ring
            began = _taken(queue, change.key)
            start_ns = max(began.at_ns, free_at_ns.get(stream, began.at_ns))
            free_at_ns[stream] = change.at_ns
            yield _slice(began, start_ns, change.at_ns, begin_ns, _runs(change.stream), why=began.reason)


def _taken(queue: deque[Change], key: int) -> Change:
    """The oldest launch of this kernel; those before it have ended with it and were not told one by one."""
    if all(change.key != key for change in queue):
        return queue.popleft()
    while (change := queue.popleft()).key != key:
        pass
    return change


def _slice(change: Change, start_ns: int, end_ns: int, begin_ns: int, thread: int, why: str) -> Event:
    return {
        "ph": "X",
        "name": change.kernel or f"{change.key:016x}",
        "cat": "kernel",
        "pid": change.client + 1,
        "tid": thread,
        "ts": (start_ns - begin_ns) / 1e3,
        "dur": max(end_ns - start_ns, 0) / 1e3,
        "args": {"why": why, "key": f"{change.key:016x}"},
    }


def _counter(name: str, after_ns: int, value: float) -> Event:
    return {"ph": "C", "name": name, "pid": DEVICE, "tid": 0, "ts": after_ns / 1e3, "args": {"share": round(value, 6)}}


def _meta(what: str, process: int, thread: int, **args: object) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "ts": 0, "args": args}


def _runs(stream: int) -> int:
    return 2 * stream + 1


def _waits(stream: int) -> int:
    return 2 * stream + 2
