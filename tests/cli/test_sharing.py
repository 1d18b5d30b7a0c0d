"""Two jobs on a device as the command line shows and asks for it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from tierline.cli.top import Scene, device_rows
from tierline.core.status import ClusterStatus, DeviceStatus, JobStatus
from tierline.kernels import environment

from .conftest import FakeDaemon, Outcome, job_json

Tierline = Callable[..., Outcome]
SHARED = {"phase": "running", "gpus": 1, "device_ids": ["gpu0"], "attempt": 1, "started_ns": 1}


@pytest.fixture
def script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.py").touch()
    return "train.py"


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    x, y = "('x', 1)", "('y', 1)"
    table = {x: {"null": 2.0, x: [1.6, 1.6], y: [1.8, 1.8]}, y: {"null": 2.0, x: [1.8, 1.8], y: [0.4, 0.4]}}
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"v100": table, "p100": table}))
    return path


def test_submit_and_sweep_say_what_a_job_is_like(daemon: FakeDaemon, tierline: Tierline, script: str) -> None:
    told = ["--job-type", "ResNet-18", "--sm-util", "0.4", "--bw-util", "0.7", "--exclusive"]
    assert tierline("submit", *told, "--", sys.executable, script).code == 0
    assert tierline("sweep", *told, "--grid", "lr=1,2", "--", sys.executable, script, "{lr}").code == 0
    wanted = {"job_type": "ResNet-18", "sm_util": 0.4, "bw_util": 0.7, "shareable": False}
    for body in daemon.posted:
        assert all({key: job[key] for key in wanted} == wanted for job in body["jobs"])
    assert tierline("submit", "--sm-util", "1.5", "--", sys.executable, script).code == 2


def test_ps_marks_shared_devices_and_why_tells_with_whom(daemon: FakeDaemon, tierline: Tierline) -> None:
    daemon.add("r", **SHARED, shares_with=["j"], speed=0.93)
    daemon.add("alone", **SHARED)
    lines = {line.split()[0]: line.split() for line in tierline("ps").out.splitlines()}
    column = lines["JOB"].index("GPUS")
    assert (lines["r"][column], lines["alone"][column]) == ("1*", "1")
    assert "r is running on gpu0, shared with j at 0.93 of its speed;" in tierline("why", "r").out
    assert "shared" not in tierline("why", "alone").out


def test_top_shows_both_users_of_a_device() -> None:
    device = DeviceStatus("gpu0", "local", "h200", 0, "r", "", "j")
    cluster = ClusterStatus(0, "fifo", 60.0, (device,), (), 2, 0, 2)
    jobs = [msgspec.convert(job_json(name, **SHARED), JobStatus) for name in ("r", "j")]
    assert [row[:2] for row in device_rows(Scene(cluster, jobs, {}))] == [["gpu0", "r"], ["gpu0 too", "j"]]


def test_simulate_shares_and_says_what_the_bound_is(tierline: Tierline, pairs: Path) -> None:
    command = ["simulate", "jobs", "exploratory", "--jobs", "24", "--gpus", "4", "--load", "4", "--policy", "fifo"]
    answer = tierline(*command, "--pairs", str(pairs), "--share", "--workers", "1")
    assert answer.code == 0, answer.err
    assert "The bound is that of exclusive devices: of bound may exceed 1." in answer.out
    assert "pairs made" in answer.out
    assert "bound is that of" not in tierline(*command, "--pairs", str(pairs), "--workers", "1").out
    found = json.loads(tierline(*command, "--pairs", f"{pairs}?start=v100", "--share", "--json", "-").out)
    assert found["pairs"] == "pairs.json?start=v100"
    assert found["policies"]["fifo"]["sharing"]["mean"]["packs"] > 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--share"], "--share needs --pairs FILE"),
        (["--share", "--pairs", "absent.json"], "there is none at 'absent.json'"),
        (["--pairs", "FILE?start=h100"], "unknown GPU type of the measured pairs 'h100'"),
        (["--pairs", "FILE?hidden=2"], "hidden and noise must lie in 0..1"),
    ],
)
def test_simulate_says_what_is_wrong_with_its_pairs(
    tierline: Tierline, pairs: Path, options: list[str], sentence: str
) -> None:
    given = [option.replace("FILE", str(pairs)) if "FILE?" in option else option for option in options]
    answer = tierline("simulate", "jobs", "exploratory", "--jobs", "5", "--policy", "fifo", "--share", *given)
    assert answer.code == 2
    assert sentence in answer.err
    assert len(answer.err.strip().splitlines()) == 1


def test_up_refuses_to_share_without_the_library_and_leaves_nothing(
    tierline: Tierline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "LIB", tmp_path)
    state = tmp_path / "state"
    answer = tierline("up", "--detach", "--slots", "1", "--state", str(state), "--share")
    assert answer.code == 2
    assert "without which devices cannot be shared, is missing" in answer.err
    assert len(answer.err.strip().splitlines()) == 1
    assert not state.exists()
    answer = tierline("up", "--detach", "--slots", "1", "--state", str(state), "--pairs", "x.json")
    assert (answer.code, "needs --share" in answer.err) == (2, True)
