"""A daemon killed with -9, again and again, while a real sweep runs: no job, report or log line is lost, no job runs twice.

Every job keeps a side log of its own, which the daemon knows nothing of, and holds a lock while it lives, so that two
attempts at once would betray themselves. TIERLINE_TEST_KILLS sets the number of kills (default 5).
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from tierline.cli.client import Client, JobRequest, SweepRequest, connect
from tierline.clock import SimClock
from tierline.config import DaemonOptions, build_recorded, discover_node, hand_over, setting_of
from tierline.core.actions import Action, StartJob
from tierline.core.errors import DaemonUnavailable
from tierline.core.events import JobHeld, JobSubmitted, NodeJoined
from tierline.core.nouns import Job
from tierline.runtime.driver import Driver
from tierline.runtime.replay import fold
from tierline.runtime.store import EventStore, EventTable
from tierline.testing.daemon import answers, spawn_daemon, wait_until

KILLS = int(os.environ.get("TIERLINE_TEST_KILLS", "5"))
JOBS_A_KILL = 3
STEPS = 10
DEADLINE_S = 120.0

TRAIN = """
import fcntl, os, sys, time
import tierline

attempt = os.environ["TIERLINE_ATTEMPT"]
side = os.open("side", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
def note(*words):
    os.write(side, (" ".join(map(str, words)) + "\\n").encode())

alive = open("alive", "w")
try:
    fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    note("TWICE", attempt)
note("begin", attempt)
saved = tierline.checkpoint_dir() / "step"
step = int(saved.read_text()) if saved.exists() else 0
while step < int(sys.argv[1]):
    if tierline.should_stop():
        note("leave", attempt)
        sys.exit(0)
    time.sleep(float(sys.argv[2]))
    step += 1
    print("line", attempt, step, flush=True)
    note("step", attempt, step)
    tierline.report(step, loss=1.0 / (step + int(sys.argv[3])))
    tierline.save_checkpoint("step", str(step).encode())
note("end", attempt)
"""


def library_path() -> str:
    return os.pathsep.join(entry for entry in sys.path if entry)


def training(root: Path, number: int, sweep: str) -> JobRequest:
    folder = root / f"job{number}"
    folder.mkdir()
    (folder / "train.py").write_text(TRAIN)
    return JobRequest(
        argv=(sys.executable, "train.py", str(STEPS), "0.1", str(number)),
        cwd=str(folder),
        job_id=f"job{number}",
        sweep=sweep,
        env={"PYTHONPATH": library_path()},
        total_steps=STEPS,
        max_restarts=100,
    )


class Flogged:
    """A daemon on one state folder that is killed and started again."""

    def __init__(self, options: DaemonOptions) -> None:
        self.options = options
        self.process = spawn_daemon(options)

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()

    def kill_and_start(self) -> None:
        self.kill()
        self.process = spawn_daemon(self.options)

    def end(self) -> None:
        self.process.terminate()
        _, said = self.process.communicate(timeout=60)
        assert self.process.returncode == 0, said


@pytest.fixture
def options(tmp_path: Path) -> DaemonOptions:
    return DaemonOptions(tmp_path / "s", slots=3, quantum=0.5, restart_cost=0.1, poll=0.05, snapshot_every=40)


@pytest.fixture
def daemon(options: DaemonOptions) -> Iterator[Flogged]:
    flogged = Flogged(options)
    yield flogged
    if flogged.process.poll() is None:
        flogged.kill()


def submit_until_accepted(client: Client, daemon: Flogged, jobs: list[JobRequest], sweep: SweepRequest) -> None:
    """A user whose daemon dies in the middle of a call looks whether the jobs are there, and else asks again."""
    wanted = {job.job_id for job in jobs}
    give_up = time.monotonic() + DEADLINE_S
    while time.monotonic() < give_up:
        assert daemon.process.poll() is None, daemon.process.communicate()
        try:
            known = {job.job_id for job in client.jobs(all=True)}
            assert wanted <= known or not wanted & known, "a submission was torn"
            if wanted <= known:
                return
            client.submit(jobs, sweep)
        except DaemonUnavailable:
            time.sleep(0.05)
    raise AssertionError("the jobs were never accepted")


def test_kills_at_random_moments_lose_nothing_and_start_nothing_twice(
    tmp_path: Path, options: DaemonOptions, daemon: Flogged
) -> None:
    seed = int(os.environ.get("TIERLINE_TEST_SEED", "0")) or time.time_ns() % 10**6
    print(f"TIERLINE_TEST_SEED={seed}")
    rng = random.Random(seed)
    count = JOBS_A_KILL * KILLS
    jobs = [training(tmp_path, number, "crash") for number in range(count)]
    hit = 0
    with connect(options.state, timeout_s=10) as client:
        for number in range(KILLS):
            batch = jobs[JOBS_A_KILL * number :][:JOBS_A_KILL]
            submit_until_accepted(client, daemon, batch, SweepRequest("crash"))
            time.sleep(rng.uniform(0.0, 1.5))
            hit += is_any_training(tmp_path)
            daemon.kill_and_start()
            if number % 3 == 0:  # and once more, in the middle of its recovery
                time.sleep(rng.uniform(0.0, 0.8))
                daemon.kill_and_start()
        wait_until(lambda: answers(client) or daemon.process.poll() is not None, "it answers at last")
        assert daemon.process.poll() is None, daemon.process.communicate()
        wait_until(lambda: not client.jobs(), "all jobs have ended", DEADLINE_S)
        statuses = {job.job_id: job for job in client.jobs(all=True)}
        assert {job_id: job.phase for job_id, job in statuses.items()} == {f"job{n}": "completed" for n in range(count)}
        for number in range(count):
            look_at(client, f"job{number}", tmp_path / f"job{number}", statuses[f"job{number}"].attempt)
    assert hit >= 1, "the kills met no running job: the test shows nothing"
    daemon.end()
    assert_replays(options.state)


def is_any_training(root: Path) -> bool:
    """Whether some job has begun and not ended, by the jobs' own account."""
    sides = [side.read_text().split("\n") for side in root.glob("job*/side")]
    return any(lines[-2].split()[0] in ("begin", "step") for lines in sides if len(lines) > 1)


def look_at(client: Client, job_id: str, folder: Path, attempts: int) -> None:
    """Compare the job's own account with the daemon's."""
    side = [line.split() for line in (folder / "side").read_text().splitlines()]
    assert "TWICE" not in {words[0] for words in side}, f"{job_id}: two attempts at once: {side}"
    begun = [int(words[1]) for words in side if words[0] == "begin"]
    assert begun == sorted(set(begun)), f"{job_id}: an attempt began twice: {side}"
    assert begun[-1] == attempts
    order = [int(words[1]) for words in side]
    assert order == sorted(order), f"{job_id}: attempts overlap: {side}"
    assert side[-1][0] == "end"
    steps = [(int(words[1]), int(words[2])) for words in side if words[0] == "step"]
    assert [step for _, step in steps] == list(range(1, STEPS + 1))
    assert [(row.attempt, row.step) for row in client.reports(job_id)] == steps
    printed = b"".join(chunk.data for chunk in client.follow(job_id))
    assert printed.decode().splitlines() == [f"line {attempt} {step}" for attempt, step in steps]


def assert_replays(state: Path) -> None:
    table = EventTable(state / "events.db")
    try:
        result = fold(table, build_recorded, hand_over, from_start=True)
    finally:
        table.close()
    assert result is not None
    assert result.first is None, result.first.sentence()
    assert result.events == result.last_seq


class DiesAtExecute:
    """Stands for a daemon that is killed after an action was recorded and before it is carried out."""

    def __init__(self) -> None:
        self.due: list[Action] = []

    def execute(self, action: Action) -> None:
        self.due.append(action)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("is_leaving", [False, True])
def test_a_start_that_was_recorded_but_never_made_is_made_once(
    tmp_path: Path, options: DaemonOptions, is_leaving: bool
) -> None:
    request = training(tmp_path, 0, "")
    job = Job("job0", argv=request.argv, cwd=request.cwd, env=tuple(request.env.items()), max_restarts=0)
    setting = setting_text(options)
    scheduler, backend = build_recorded(setting), DiesAtExecute()
    clock = SimClock(time.time_ns())
    with EventStore(options.state) as store:
        store.begin_run(clock.now_ns(), "0.1", setting, scheduler.dump)
        driver = Driver(scheduler, backend, clock, store)
        driver.submit([NodeJoined(discover_node(options))])
        driver.submit([JobSubmitted(job)])
        driver.run(until=lambda now_ns: bool(backend.due))
        if is_leaving:
            driver.submit([JobHeld("job0", "local")])
    assert isinstance(backend.due[0], StartJob)
    process = spawn_daemon(options)
    with connect(options.state) as client:
        wait_until(lambda: answers(client), "it answers")
        if is_leaving:
            wait_until(lambda: client.job("job0").phase == "held", "it is held without ever having run")
            assert not (tmp_path / "job0" / "side").exists()
            client.release("job0")
        wait_until(lambda: client.job("job0").phase == "completed", "it has completed")
        look_at(client, "job0", tmp_path / "job0", client.job("job0").attempt)
        assert client.job("job0").attempt == (2 if is_leaving else 1)
    process.terminate()
    process.communicate(timeout=60)
    assert_replays(options.state)


def setting_text(options: DaemonOptions) -> str:
    return msgspec.json.encode(setting_of(options)).decode()


def test_jobs_that_ended_while_no_daemon_was_there_are_accounted_for(
    tmp_path: Path, options: DaemonOptions, daemon: Flogged
) -> None:
    with connect(options.state) as client:
        wait_until(lambda: answers(client), "it answers")
        client.submit([training(tmp_path, number, "gone") for number in range(3)], SweepRequest("gone"))
        sides = [tmp_path / f"job{number}" / "side" for number in range(3)]
        wait_until(lambda: all(side.exists() and "step 1 2" in side.read_text() for side in sides), "all have begun")
        daemon.kill()
        wait_until(lambda: all("end" in side.read_text() for side in sides), "they ended by themselves")
        daemon.process = spawn_daemon(options)
        wait_until(lambda: answers(client), "it answers again")
        wait_until(lambda: not client.jobs(), "the daemon knows")
        for number in range(3):
            assert client.job(f"job{number}").phase == "completed"
            look_at(client, f"job{number}", tmp_path / f"job{number}", 1)
    daemon.end()
    assert_replays(options.state)


def test_a_job_that_is_killed_from_outside_ends_with_a_reason_and_touches_no_other(
    tmp_path: Path, options: DaemonOptions, daemon: Flogged
) -> None:
    with connect(options.state) as client:
        wait_until(lambda: answers(client), "it answers")
        victim = JobRequest(argv=("bash", "-c", "echo $$ > pid; exec sleep 603"), cwd=str(tmp_path), job_id="victim")
        client.submit([victim, training(tmp_path, 1, "")])
        wait_until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().strip() != "", "it runs")
        subprocess.run(["kill", "-9", (tmp_path / "pid").read_text().strip()], check=True)
        wait_until(lambda: not client.jobs(), "both have ended")
        assert client.job("victim").phase == "failed"
        assert "SIGKILL" in client.job("victim").reason
        assert client.job("job1").phase == "completed"
    daemon.end()
