"""A region's trace as a timeline that Perfetto and chrome://tracing open.

The Trace Event Format: one process a client (process 0 is the device), one thread a stream for what ran and one for what
waited, and two counters for the sums over all clients. Times are microseconds from the first change.

The trace tells when a launch was admitted, and when a stream was seen to have done all up to some launch, which may be
several at once. A stream runs one kernel at a time, so a slice begins when its first launch was admitted or the slice before
it ended, whichever is later. A stream that gives back all that it added to the sums has nothing left: the slice then stands
for all of its queue.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tierline.core.errors import InvalidInput
from tierline.kernels.demangle import readable
from tierline.kernels.region import Change, RegionSeen

DEVICE = 0
_NOTHING = 0.5e-6  # half of the unit in which the core counts shares
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


@dataclass(slots=True)
class _Stream:
    """Launches that have not ended, oldest first, and what the stream adds to both sums."""

    queue: deque[Change] = field(default_factory=deque)
    sm_util: float = 0.0
    bw_util: float = 0.0
    free_at_ns: int = 0

    @property
    def is_idle(self) -> bool:
        return self.sm_util < _NOTHING and self.bw_util < _NOTHING


def _slices(region: RegionSeen, begin_ns: int) -> Iterator[Event]:
    streams: dict[tuple[int, int], _Stream] = {}
    waiting: dict[tuple[int, int, int], Change] = {}
    before = region.changes[0]
    for change in region.changes:
        stream = streams.setdefault((change.client, change.stream), _Stream())
        launch = (change.client, change.stream, change.key)
        if change.kind == "waits":
            waiting[launch] = change
            continue
        # Less than nothing: it had work in flight when the trace begins, which is now known to be over.
        stream.sm_util = max(stream.sm_util + change.sm_util - before.sm_util, 0.0)
        stream.bw_util = max(stream.bw_util + change.bw_util - before.bw_util, 0.0)
        before = change
        if change.kind == "admitted":
            stream.queue.append(change)
            if (since := waiting.pop(launch, None)) is not None:
                yield _slice(since, since.at_ns, change.at_ns, begin_ns, _waits(change.stream), why=since.reason)
        elif stream.queue:  # else its beginning has left the ring
            ended = _ended(stream, change)
            first = ended[0]
            start_ns = max(first.at_ns, stream.free_at_ns)
            stream.free_at_ns = change.at_ns
            yield _slice(
                first, start_ns, change.at_ns, begin_ns, _runs(change.stream), why=first.reason, launches=len(ended)
            )


def _ended(stream: _Stream, change: Change) -> list[Change]:
    """The launches that are over with this change, taken from the queue: all, or the oldest."""
    if stream.is_idle or change.sm_util + change.bw_util < _NOTHING:
        ended = list(stream.queue)
        stream.queue.clear()
        return ended
    return [stream.queue.popleft()]


def _slice(
    change: Change, start_ns: int, end_ns: int, begin_ns: int, thread: int, why: str, launches: int = 1
) -> Event:
    return {
        "ph": "X",
        "name": readable(change.kernel),
        "cat": "kernel",
        "pid": change.client + 1,
        "tid": thread,
        "ts": (start_ns - begin_ns) / 1e3,
        "dur": max(end_ns - start_ns, 0) / 1e3,
        "args": {"why": why, "launches": launches, "key": f"{change.key:016x}", "kernel": change.kernel},
    }


def _counter(name: str, after_ns: int, value: float) -> Event:
    return {"ph": "C", "name": name, "pid": DEVICE, "tid": 0, "ts": after_ns / 1e3, "args": {"share": round(value, 6)}}


def _meta(what: str, process: int, thread: int, **args: object) -> Event:
    return {"ph": "M", "name": what, "pid": process, "tid": thread, "ts": 0, "args": args}


def _runs(stream: int) -> int:
    return 2 * stream + 1


def _waits(stream: int) -> int:
    return 2 * stream + 2
