"""Command lines against a real daemon with two CPU slots: what a user does on the first day, and what they get wrong."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tierline.cli.client import connect
from tierline.config import DaemonOptions
from tierline.testing.daemon import answers, spawn_daemon, wait_until

LIMIT_S = 60
TRAIN = """
import sys, time, tierline
rate = float(sys.argv[1])
for step in range(1, 9):
    tierline.report(step, loss=1 / (1 + rate * step))
    print("step", step, flush=True)
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def state() -> Iterator[Path]:
    """The state folder of a daemon that answers; short, for a socket's path must fit into it."""
    with tempfile.TemporaryDirectory(prefix="tl-", ignore_cleanup_errors=True) as folder:
        path = Path(folder)
        process = spawn_daemon(DaemonOptions(state=path, slots=2, quantum=0.5, restart_cost=0.1))
        try:
            assert process.stdout is not None
            assert "is up" in process.stdout.readline()
            with connect(path) as client:
                wait_until(lambda: answers(client), "the daemon answers")
            yield path
        finally:
            process.terminate()
            process.communicate(timeout=LIMIT_S)


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tierline(state: Path, tmp_path: Path) -> Run:
    (tmp_path / "train.py").write_text(TRAIN)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TIERLINE_")}
    environment["TIERLINE_HOME"] = str(state)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "tierline.cli.main", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )

    return run


def test_the_first_day(tierline: Run) -> None:
    command = ("--", sys.executable, "train.py")
    done = tierline("submit", "--name", "first", "--wait", *command, "1")
    assert (done.returncode, done.stdout) == (0, "first\n"), done.stderr
    assert tierline("logs", "first").stdout.splitlines() == [f"step {i}" for i in range(1, 9)]
    assert tierline("logs", "-f", "-n", "1", "first").stdout == "step 8\n"
    why = tierline("why", "first").stdout
    assert "first is completed, step 8, best loss 0.1111" in why
    assert "start #1" in why

    sweep = tierline("sweep", "--name", "s", "--grid", "rate=1,2,4", "--chance", "1", *command, "{rate}")
    assert sweep.stdout == "s: 3 trials, s-0 to s-2\n", sweep.stderr
    last = tierline("submit", "--name", "last", "--after", "s-2", "--wait", *command, "1")
    assert last.returncode == 0, last.stderr
    rows = [line.split() for line in tierline("ps", "--all", "--sweep", "s").stdout.splitlines()]
    assert [row[0] for row in rows] == ["JOB", "s-0", "s-1", "s-2"]
    assert rows[3][5] == "0.0303"

    assert tierline("submit", "--name", "held", "--hold", *command, "1").returncode == 0
    assert tierline("stop", "held").stdout == "held stopped\n"
    failed = tierline("submit", "--name", "bad", "--restarts", "0", "--wait", "--", sys.executable, "-c", "1/0")
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["up", "--slots", "2", "--policy", "fifi"], "did you mean 'fifo'"),
        (["up", "--slots", "2"], "already"),
        (["up", "--slots", "0"], "--slots 0"),
        (["submit", "--gpus", "9", "--", sys.executable, "train.py", "1"], "asks for 9 GPUs; this cluster has 2"),
        (["submit", "--", sys.executable, "gone.py"], "'gone.py' does not exist"),
        (["submit", "--gpu-type", "h100", "--", sys.executable, "train.py", "1"], "this cluster has: cpu"),
        (["submit", "--after", "gone", "--", sys.executable, "train.py", "1"], "'gone', which does not exist"),
        (["sweep", "--grid", "r=1", "--gpus", "3", "--", sys.executable, "train.py", "{r}"], "asks for 3 GPUs"),
        (["sweep", "--grid", "r", "--", sys.executable, "train.py", "{r}"], "--grid 'r'"),
        (["why", "gone"], "there is no job 'gone'"),
        (["hold", "gone"], "there is no job 'gone'"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(
    tierline: Run, state: Path, arguments: list[str], said: str
) -> None:
    with connect(state) as client:
        before = [job.job_id for job in client.jobs(all=True)], client.sweeps()
        answer = tierline(*arguments)
        assert (answer.returncode, answer.stdout) == (2, "")
        assert len(answer.stderr.splitlines()) == 1, answer.stderr
        assert said in answer.stderr
        assert ([job.job_id for job in client.jobs(all=True)], client.sweeps()) == before


def test_top_and_json_of_a_live_daemon(tierline: Run) -> None:
    assert "policy" in tierline("top").stdout
    for command in (["ps", "--all"], ["top"], ["doctor"]):
        assert tierline(*command, "--json").stdout.startswith("{")
