"""A daemon's beginning and end: what it refuses to begin with, what it leaves running, and how it takes that up again."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tierline.cli.client import Client, JobRequest, connect
from tierline.config import DaemonOptions, read_options
from tierline.core.errors import DaemonUnavailable, InvalidInput
from tierline.runtime.store import EventStore, holder
from tierline.testing.daemon import answers, spawn_daemon, wait_until

END_S = 60


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, what it said on stderr) of a daemon that ends by itself."""
    _, said = process.communicate(timeout=END_S)
    return process.returncode, said


def sentence(process: subprocess.Popen[str]) -> str:
    """The one sentence of a daemon that cannot begin."""
    code, said = ended(process)
    assert code == 2, said
    assert said.startswith("tierline: ")
    assert said.count("\n") == 1
    return said


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGTERM)
    code, said = ended(process)
    assert (code, said) == (0, "")


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_second_daemon_on_the_same_state_is_told_who_has_it(tmp_path: Path) -> None:
    options = DaemonOptions(tmp_path / "s", slots=1)
    first = spawn_daemon(options)
    with connect(options.state) as client:
        wait_until(lambda: answers(client), "the first answers")
        assert f"Another daemon (process {first.pid}) already has the state folder" in sentence(spawn_daemon(options))
        assert client.health().pid == first.pid  # its socket was left alone
        end(first)
        with pytest.raises(DaemonUnavailable, match="tierline up"):
            client.health()


def test_a_state_of_a_newer_version_is_not_touched(tmp_path: Path) -> None:
    options = DaemonOptions(tmp_path / "s", slots=1)
    EventStore(options.state).close()
    db = sqlite3.connect(options.state / "events.db")
    db.execute("UPDATE meta SET value = '99' WHERE key = 'schema'")
    db.commit()
    db.close()
    before = (options.state / "events.db").read_bytes()
    assert "written by a newer Tierline" in sentence(spawn_daemon(options))
    assert (options.state / "events.db").read_bytes() == before


def test_a_port_in_use_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        listen = f"127.0.0.1:{other.getsockname()[1]}"
        said = sentence(spawn_daemon(DaemonOptions(tmp_path / "s", slots=1, listen=listen)))
    assert listen in said
    assert "Address already in use" in said
    assert not (tmp_path / "s").exists()


def test_something_else_in_the_sockets_place_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "s" / "run").mkdir(parents=True)
    (tmp_path / "s" / "run" / "tierline.sock").write_text("mine")
    assert "it is no socket" in sentence(spawn_daemon(DaemonOptions(tmp_path / "s", slots=1)))
    assert (tmp_path / "s" / "run" / "tierline.sock").read_text() == "mine"
    assert [path.name for path in (tmp_path / "s").iterdir()] == ["run"]


def test_an_unknown_policy_makes_no_folder(tmp_path: Path) -> None:
    assert "unknown policy 'fiffo': did you mean 'fifo'?" in sentence(
        spawn_daemon(DaemonOptions(tmp_path / "s", slots=1, policy="fiffo"))
    )
    assert not (tmp_path / "s").exists()


def test_jobs_outlive_the_daemon_and_are_adopted_also_by_another_policy(tmp_path: Path) -> None:
    options = DaemonOptions(tmp_path / "s", slots=2, quantum=1, restart_cost=0.5, poll=0.05)
    pid_file = tmp_path / "pid"
    job = JobRequest(argv=("bash", "-c", 'echo $$ >> pid; exec sleep "$0"', "602.5"), cwd=str(tmp_path), grace_s=1)
    with connect(options.state) as client:
        first = spawn_daemon(options)
        wait_until(lambda: answers(client), "the first answers")
        job_id = client.submit([job])[0]
        wait_until(lambda: client.job(job_id).phase == "running" and pid_file.exists(), "the job runs")
        pid = int(pid_file.read_text())
        end(first)
        assert lives(pid)
        other = DaemonOptions(tmp_path / "s", slots=3, policy="fifo", quantum=1, poll=0.05)
        second = spawn_daemon(other)
        wait_until(lambda: answers(client), "the second answers")
        status = client.job(job_id)
        assert (status.phase, status.attempt) == ("running", 1)
        assert (client.health().policy, len(client.cluster().devices)) == ("fifo", 3)
        client.stop(job_id)
        wait_until(lambda: client.job(job_id).phase == "stopped", "the adopted job is stopped")
        assert not lives(pid)
        assert pid_file.read_text().split() == [str(pid)]
        end(second)
    replayed = subprocess.run(
        [sys.executable, "-m", "tierline.cli.main", "replay", str(options.state)], capture_output=True, text=True
    )
    assert "no difference" in replayed.stdout, replayed.stdout + replayed.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="a small tmpfs needs root")
def test_a_full_disk_ends_the_daemon_with_one_sentence_and_loses_nothing_accepted(tmp_path: Path) -> None:
    state = tmp_path / "s"
    state.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(state)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no tmpfs can be mounted here")
    try:
        options = DaemonOptions(state, slots=1)
        daemon = spawn_daemon(options)
        job = JobRequest(argv=("true",), cwd="/", held=True, env={"X": "y" * 20_000})
        accepted: list[str] = []

        def fill(client: Client) -> None:
            while len(accepted) < 200:
                accepted.extend(client.submit([job]))

        with connect(state) as client:
            wait_until(lambda: answers(client), "it answers")
            with pytest.raises(DaemonUnavailable, match=r"full.*what was accepted before is kept"):
                fill(client)
        code, said = ended(daemon)
        assert code == 1
        assert "Make room on that disk" in said
        subprocess.run(["mount", "-o", "remount,size=20m", str(state)], check=True)
        again = spawn_daemon(options)
        with connect(state) as client:
            wait_until(lambda: answers(client), "it answers again")
            assert [job.job_id for job in client.jobs(all=True)] == accepted
            assert accepted
        end(again)
    finally:
        subprocess.run(["umount", str(state)], check=False)


def test_when_the_scheduling_loop_dies_the_daemon_ends_with_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "own_policy.py").write_text(
        "class Broken:\n"
        "    '''Idea: none.'''\n"
        "    preemptive, needs_forecast, work_conserving = False, False, False\n"
        "    def plan(self, view, rng):\n"
        "        raise RuntimeError('on purpose')\n"
    )
    options = DaemonOptions(tmp_path / "s", slots=1, policy="own_policy:Broken")
    path = os.pathsep.join([str(tmp_path), *(entry for entry in sys.path if entry)])
    daemon = spawn_daemon(options, PYTHONPATH=path)
    with connect(options.state) as client:
        wait_until(lambda: answers(client), "it answers")
        client.submit([JobRequest(argv=("true",), cwd="/")])
    code, said = ended(daemon)
    assert code == 1
    assert "tierline: The scheduling loop failed (RuntimeError: on purpose); nothing accepted is lost." in said
    # The state was half changed when it failed; what the next daemon goes on from must not be that state.
    (tmp_path / "own_policy.py").write_text("from tierline.policies.jobs.fifo import FirstInFirstOut as Broken\n")
    mended = spawn_daemon(options, PYTHONPATH=path)
    with connect(options.state) as client:
        wait_until(lambda: answers(client) and client.jobs(all=True)[0].phase == "completed", "the job has run")
    end(mended)


def test_up_detached_and_down(tmp_path: Path) -> None:
    state = tmp_path / "s"

    def tierline(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "tierline.cli.main", *words, "--state", str(state)]
        return subprocess.run(command, capture_output=True, text=True, timeout=END_S)

    up = tierline("up", "--detach", "--slots", "1", "--policy", "fifo")
    assert up.returncode == 0, up.stderr
    pid = holder(state)
    assert f"process {pid}" in up.stdout
    try:
        twice = tierline("up", "--detach", "--slots", "1")
        assert twice.returncode == 2
        assert "already has the state folder" in twice.stderr
        foreground = tierline("up", "--slots", "1")
        assert foreground.returncode == 2
        assert "already has the state folder" in foreground.stderr
        for flag, value, word in (
            ("--slots", "0", "slots"), ("--quantum", "-1", "--quantum"), ("--policy", "nix", "Known:"),
            ("--fair-by", "luck", "fair"), ("--listen", "nowhere", "HOST:PORT"), ("--config", "/no/file", "cannot be read"),
        ):  # fmt: skip
            bad = tierline("up", flag, value)
            assert bad.returncode == 2, bad.stderr
            assert word in bad.stderr
        assert holder(state) == pid
    finally:
        down = tierline("down")
    assert down.returncode == 0, down.stderr
    assert holder(state) is None
    assert tierline("down").returncode == 3


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("slots = 1.5", "'slots' takes int | null, but got float."),
        ('fair_by = "moon"', "allowed are job, user, sweep."),
    ],
)
def test_a_wrong_value_in_the_configuration_file_is_told_in_the_users_words(tmp_path, line, sentence):
    file = tmp_path / "tierline.toml"
    file.write_text(f"[daemon]\n{line}\n", "utf-8")
    with pytest.raises(InvalidInput) as refused:
        read_options(file, {"state": str(tmp_path / "state")})
    assert sentence in str(refused.value)
    assert not (tmp_path / "state").exists()
