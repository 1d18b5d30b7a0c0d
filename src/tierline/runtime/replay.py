"""State as a fold over the event table. Recovery after a crash and `tierline replay` are this one function.

Each recorded event goes through the scheduler again, at its recorded time, and the actions that come out are compared
with those on record. Two kinds of difference are told apart. The *effect* of an action is what a backend does about
it: which job, attempt, devices, moment. Its *note* is the rest: reason, density, price. Replay reports both. Recovery
lets a differing note pass (another numpy may round another way) but not a differing effect: the recorded actions are
what was really done to processes, so a scheduler that would have decided otherwise holds a state that is not true, and
to go on could start a job twice. It refuses, and names the version that wrote the record; that one can still recover,
and after its `tierline down`, which leaves a snapshot behind, any later version goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

from tierline.core.actions import Action, PreemptJob, RecordEnd, RecordRefusal, SetTimer, StartJob, StopJob
from tierline.core.contracts import Scheduler
from tierline.core.errors import StateUnusable
from tierline.runtime.codec import decode_actions, decode_event
from tierline.runtime.table import EventTable, Row, Run


class Foldable(Scheduler, Protocol):
    """A scheduler whose state can be written down and taken up again."""

    def dump(self) -> dict[str, Any]: ...

    def load(self, dump: dict[str, Any]) -> None: ...


S = TypeVar("S", bound=Foldable)
Build = Callable[[str], S]
"""A setting as recorded (JSON) -> a fresh scheduler under it."""
HandOver = Callable[[str, S, str], S]
"""(setting, scheduler under it, another setting) -> a scheduler under the other with the state of the first."""


@dataclass(frozen=True, slots=True)
class Difference:
    """The actions recorded with an event and those computed now. `effect`: not only reasons, densities or prices."""

    row: Row
    recorded: tuple[Action, ...]
    computed: tuple[Action, ...]
    effect: bool
    version: str

    def sentence(self) -> str:
        """What differs first, for a person."""
        for number in range(max(len(self.recorded), len(self.computed))):
            was = self.recorded[number] if number < len(self.recorded) else None
            now = self.computed[number] if number < len(self.computed) else None
            if was != now:
                return (
                    f"event {self.row.seq} ({self.row.kind}), action {number + 1}: "
                    f"recorded {was or 'none'}, computed {now or 'none'}"
                )
        return f"event {self.row.seq} ({self.row.kind}): no difference"


@dataclass(frozen=True, slots=True)
class Fold(Generic[S]):
    """The scheduler after the last event, what was compared on the way, and the first difference if any.

    `start_seq` is the snapshot's event (0 = from the beginning). `setting` is the last run's, JSON.
    """

    scheduler: S
    setting: str
    start_seq: int
    last_seq: int
    last_time_ns: int
    events: int
    actions: int
    differences: int
    first: Difference | None
    first_effect: Difference | None


def fold(
    table: EventTable,
    build: Build[S],
    hand_over: HandOver[S],
    *,
    from_start: bool = False,
    on_event: Callable[[int, int], None] = lambda done, total: None,
) -> Fold[S] | None:
    """Fold the table, from its newest snapshot or from the beginning. None when no daemon ever ran here.

    Raises `StateUnusable` when a record cannot be read or the sequence has a gap. `on_event(done, total)` is told how
    far it is.
    """
    runs = table.runs()
    if not runs:
        return None
    snapshot = None if from_start else table.snapshot()
    start_seq = snapshot.seq if snapshot else 0
    run = runs[0] if snapshot is None else _run(runs, snapshot.run)
    scheduler = build(run.setting)
    if snapshot is not None:
        scheduler.load(_dump(snapshot.body))
    later = [entry for entry in runs if entry.run > run.run]
    last_seq, last_time_ns = table.last()
    total, events, actions, differences = last_seq - start_seq, 0, 0, 0
    first = first_effect = None
    for row in table.events(after=start_seq):
        while later and row.seq > later[0].after_seq:
            run, scheduler = _switch(run, later.pop(0), scheduler, hand_over)
        if row.seq != start_seq + events + 1:
            raise StateUnusable(f"The event table has a gap before event {row.seq}: it is damaged.")
        recorded = decode_actions(row.actions)
        computed = scheduler.handle(row.time_ns, decode_event(row.kind, row.body))
        events += 1
        actions += len(recorded)
        if recorded != computed:
            differences += 1
            difference = Difference(
                row, tuple(recorded), tuple(computed), effects(recorded) != effects(computed), run.version
            )
            first = first or difference
            first_effect = first_effect or (difference if difference.effect else None)
        on_event(events, total)
    for entry in later:
        run, scheduler = _switch(run, entry, scheduler, hand_over)
    return Fold(
        scheduler, run.setting, start_seq, last_seq, last_time_ns, events, actions, differences, first, first_effect
    )


def recover(table: EventTable, build: Build[S], hand_over: HandOver[S]) -> Fold[S] | None:
    """The state to go on from. Raises `StateUnusable` when it would not be true (see above); None for a new folder."""
    result = fold(table, build, hand_over)
    if result is not None and result.first_effect is not None:
        difference = result.first_effect
        raise StateUnusable(
            f"The recorded decisions cannot be repeated: {difference.sentence()}. They were written by Tierline "
            f"{difference.version}: start that version with the same --policy and end it with `tierline down`, or "
            "begin anew with another --state. Nothing was touched."
        )
    return result


def effects(actions: Sequence[Action]) -> list[tuple[object, ...]]:
    """What backends and timers do about the actions, without the notes that go with them."""
    return [_effect(action) for action in actions]


def _effect(action: Action) -> tuple[object, ...]:
    match action:
        case StartJob(job_id, attempt, device_ids, resume):
            return "start", job_id, attempt, device_ids, resume, action.shares_with
        case PreemptJob(job_id, attempt):
            return "preempt", job_id, attempt
        case StopJob(job_id, attempt):
            return "stop", job_id, attempt
        case SetTimer(name, at_ns):
            return "timer", name, at_ns
        case RecordEnd(job_id, phase):
            return "end", job_id, phase
        case RecordRefusal(job_id):
            return "refusal", job_id
        case _:  # of the serving tier: everything but the reason
            return type(action).__name__, *(
                getattr(action, name) for name in action.__struct_fields__ if name != "reason"
            )


def _switch(run: Run, later: Run, scheduler: S, hand_over: HandOver[S]) -> tuple[Run, S]:
    """A daemon that began under another setting took the state over; so does the fold."""
    if later.setting == run.setting:
        return later, scheduler
    return later, hand_over(run.setting, scheduler, later.setting)


def _run(runs: Sequence[Run], number: int) -> Run:
    for run in runs:
        if run.run == number:
            return run
    raise StateUnusable(f"The newest snapshot belongs to run {number}, which is not on record: the table is damaged.")


def _dump(body: str) -> dict[str, Any]:
    try:
        dump = json.loads(body)
    except ValueError as error:
        raise StateUnusable(f"The newest snapshot cannot be read: {error}.") from error
    if not isinstance(dump, dict):
        raise StateUnusable("The newest snapshot cannot be read: it is no object.")
    return dump
