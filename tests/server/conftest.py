"""One real daemon for these tests."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tierline.cli.client import JobRequest, connect
from tierline.config import DaemonOptions
from tierline.testing.daemon import RunningDaemon, answers, spawn_daemon, wait_until

TOKENS = {"ann": "a-token-of-ann-0123456789", "bob": "a-token-of-bob-0123456789"}
END_S = 60


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningDaemon]:
    state = tmp_path_factory.mktemp("d") / "s"
    state.mkdir(mode=0o700)
    tokens = state / "tokens.json"
    tokens.write_text(json.dumps([{"token": token, "user": user} for user, token in TOKENS.items()]))
    tokens.chmod(0o600)
    process = spawn_daemon(DaemonOptions(state, slots=4, quantum=1, restart_cost=0.5, poll=0.05, listen="127.0.0.1:0"))
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://" in line, line + (process.stderr.read() if process.stderr else "")
        with connect(state) as client:
            wait_until(lambda: answers(client), "the daemon answers")
            yield RunningDaemon(process, state, client, "http://" + line.strip().rpartition("http://")[2], TOKENS)
            for job in client.jobs():
                client.stop(job.job_id)
            wait_until(lambda: not client.jobs(), "all jobs have ended")
    finally:
        process.terminate()
        process.communicate(timeout=END_S)
    assert process.returncode == 0


@pytest.fixture
def sleeper(tmp_path: Path) -> JobRequest:
    """A job that would run for long."""
    return JobRequest(argv=("sleep", "600"), cwd=str(tmp_path), grace_s=1)
