from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tierline.cli import jobspec
from tierline.core.errors import InvalidInput, UnknownName
from tierline.server.schemas import JobRequest


def test_readings() -> None:
    assert jobspec.gpus("2") == (2, 2)
    assert jobspec.gpus("1..4") == (1, 4)
    assert jobspec.bytes_of("24G") == jobspec.bytes_of("24GiB") == 24 << 30
    assert jobspec.bytes_of("1.5k") == 1536
    assert jobspec.seconds_of("--grace", "1.5h") == 5400
    assert jobspec.seconds_of("--grace", "30") == 30
    assert jobspec.metric("accuracy:max") == ("accuracy", "max")
    assert jobspec.progress("jsonl", "acc") == ("jsonl", "acc")
    assert jobspec.progress("tensorboard:runs/1", "loss") == ("tensorboard", "runs/1:loss")
    assert jobspec.environment(["A=1=2", "B"], {"B": "mine"}) == {"A": "1=2", "B": "mine"}
    assert jobspec.deadline("2h", now_s=100.0) == 7300.0


@pytest.mark.parametrize("text", ["0", "4..1", "two", "1..", "-1", ""])
def test_numbers_of_gpus_that_make_no_sense(text: str) -> None:
    with pytest.raises(InvalidInput, match="--gpus"):
        jobspec.gpus(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("regex:(", "regular expression"),
        ("regex:loss (?P<loss>.)", "step"),
        ("report:x", "nothing"),
        ("tensorboard", "folder"),
    ],
)
def test_progress_that_cannot_be_read(text: str, said: str) -> None:
    with pytest.raises(InvalidInput, match=said):
        jobspec.progress(text, "loss")


def test_unknown_names_are_answered_with_the_known() -> None:
    with pytest.raises(UnknownName, match="max"):
        jobspec.metric("loss:maximum")
    with pytest.raises(UnknownName, match="jsonl"):
        jobspec.progress("json", "loss")


def test_a_deadline_in_the_past_is_refused() -> None:
    with pytest.raises(InvalidInput, match="passed"):
        jobspec.deadline("2001-01-01T00:00", now_s=2e9)


def test_the_program_is_settled_where_the_user_stands(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    python = sys.executable
    argv = jobspec.command([python, "-u", "-W", "error", "train.py", "--x"], tmp_path)
    assert argv == (python, "-u", "-W", "error", "train.py", "--x")
    assert jobspec.command([python, "-m", "nothing_here"], tmp_path)[1:] == ("-m", "nothing_here")
    assert jobspec.command([python, "-c", "no_file"], tmp_path)[1:] == ("-c", "no_file")
    script = tmp_path / "run.sh"
    script.write_text("#!/bin/sh\n")
    with pytest.raises(InvalidInput, match="executable"):
        jobspec.command(["./run.sh"], tmp_path)
    script.chmod(0o755)
    assert jobspec.command(["./run.sh"], tmp_path) == (str(tmp_path / "run.sh"),)


def test_a_missing_script_is_told_now(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"'gone\.py' does not exist"):
        jobspec.command([sys.executable, "gone.py"], tmp_path)
    with pytest.raises(InvalidInput, match="'no-such-program' does not exist"):
        jobspec.command(["no-such-program"], tmp_path)


def test_path_is_searched_like_the_shell_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "mine"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert jobspec.command(["mine", "1"], Path("/")) == (str(program), "1")


def test_limits_are_those_of_the_daemon() -> None:
    fields = JobRequest.model_json_schema()["properties"]
    assert (fields["priority"]["minimum"], fields["priority"]["maximum"]) == jobspec.PRIORITIES
    limits = {
        "max_gpus": jobspec.MAX_GPUS,
        "total_steps": jobspec.MAX_STEPS,
        "gpu_memory_bytes": jobspec.MAX_BYTES,
        "max_restarts": jobspec.MAX_RESTARTS,
        "grace_s": jobspec.MAX_GRACE_S,
        "deadline_s": jobspec.MAX_DEADLINE_S,
    }
    assert {name: fields[name]["maximum"] for name in limits} == limits
