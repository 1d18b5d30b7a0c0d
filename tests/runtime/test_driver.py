"""The loop: what is recorded before what is done, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import pytest

from tierline.clock import SimClock, WallClock
from tierline.core.actions import Action, RecordRefusal
from tierline.core.errors import InvalidInput, StateUnusable
from tierline.core.events import Event, StopRequested
from tierline.runtime.driver import MAX_BATCH, Driver


class Machine:
    """A scheduler, its journal and its backend, which write down what reaches them; `explode` is called by each."""

    def __init__(self, explode: Callable[[str, str], None] = lambda where, job_id: None) -> None:
        self.handled: list[str] = []
        self.batches: list[list[str]] = []
        self.executed: list[str] = []
        self._explode = explode

    def check(self, events: Sequence[Event]) -> None:
        if any(event.job_id == "bad" for event in events):
            raise InvalidInput("bad is bad.")

    def handle(self, now_ns: int, event: Event) -> list[Action]:
        self._explode("handle", event.job_id)
        self.handled.append(event.job_id)
        return [RecordRefusal(event.job_id, "test")]

    def append(self, entries: Sequence[tuple[int, Event, Sequence[Action]]]) -> None:
        self._explode("append", entries[0][1].job_id)
        assert not self.executed[sum(map(len, self.batches)) :], "nothing is done before it is recorded"
        self.batches.append([event.job_id for _, event, _ in entries])

    def execute(self, action: Action) -> None:
        self._explode("execute", action.job_id)
        self.executed.append(action.job_id)

    def close(self) -> None:
        pass


def stops(*names: str) -> list[Event]:
    return [StopRequested(name, "ann") for name in names]


def test_a_crowd_of_events_on_a_wall_clock_is_recorded_in_few_transactions_and_in_order() -> None:
    machine, clock = Machine(), WallClock()
    names = [f"j{number}" for number in range(3 * MAX_BATCH)]
    for event in stops(*names):
        clock.post(event)
    clock.post(StopRequested("later", "ann"), at_ns=clock.now_ns() + 10**15)
    driver = Driver(machine, machine, clock, machine)
    runner = threading.Thread(target=driver.run)
    runner.start()
    while len(machine.executed) < len(names):
        assert runner.is_alive()
    clock.close()
    runner.join()
    assert machine.executed == machine.handled == names
    assert len(machine.batches) <= 4


def test_on_a_simulated_clock_every_event_is_a_step_of_its_own() -> None:
    machine, clock = Machine(), SimClock()
    for event in stops("a", "b"):
        clock.post(event)
    Driver(machine, machine, clock, machine).run()
    assert machine.batches == [["a"], ["b"]]


def test_what_is_refused_changes_nothing() -> None:
    machine = Machine()
    driver = Driver(machine, machine, SimClock(), machine)
    with pytest.raises(InvalidInput):
        driver.submit(stops("good", "bad"))
    assert (machine.handled, driver.closed) == ([], "")
    driver.submit(stops("good"))
    assert machine.batches == [["good"]]


@pytest.mark.parametrize(("where", "recorded"), [("handle", []), ("append", []), ("execute", [["a", "b"]])])
def test_a_failure_within_an_event_ends_the_run_for_all(where: str, recorded: list[list[str]]) -> None:
    def explode(place: str, job_id: str) -> None:
        if place == where and (job_id == "b" or where == "append"):
            raise OSError("no luck")

    machine = Machine(explode)
    driver = Driver(machine, machine, SimClock(), machine)
    for _ in range(2):  # half changed is not to be gone on from
        with pytest.raises(StateUnusable, match="OSError: no luck"):
            driver.submit(stops("a", "b"))
    assert machine.batches == recorded
    assert driver.query(lambda: machine.handled)[:1] in (["a"], [])


def test_a_closed_driver_takes_nothing() -> None:
    machine = Machine()
    driver = Driver(machine, machine, SimClock(), machine)
    driver.close("It is over.")
    with pytest.raises(StateUnusable, match="It is over"):
        driver.submit(stops("a"))
    assert machine.handled == []
