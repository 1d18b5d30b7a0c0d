"""The command line as a whole: help, start-up, errors, and the commands that need no daemon."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tierline.policies.jobs import POLICIES

from .conftest import Outcome

Tierline = Callable[..., Outcome]
COMMANDS = (
    "up", "down", "submit", "sweep", "ps", "why", "logs", "stop", "hold", "release", "top", "policies", "simulate",
    "data", "replay", "doctor", "run", "kernels", "calibrate", "serve", "chat",
)  # fmt: skip


SUBCOMMAND = {"simulate": ("jobs",), "kernels": ("report",), "calibrate": ("device",)}


def test_every_command_is_there_and_teaches_with_an_example(tierline: Tierline) -> None:
    listed = tierline("--help").out
    for command in COMMANDS:
        assert f" {command} " in listed
        words = (command, *SUBCOMMAND.get(command, ()))
        answer = tierline(*words, "--help")
        assert answer.code == 0
        assert f"tierline {command}" in answer.out.replace("Usage: tierline", "")


def test_help_needs_no_heavy_module() -> None:
    code = (
        "import sys; from tierline.cli.main import main; main(['--help']);"
        "heavy = {'numpy', 'scipy', 'fastapi', 'uvicorn', 'httpx', 'optuna', 'matplotlib', 'pynvml', 'torch'};"
        "heavy &= set(sys.modules);"
        "sys.exit(', '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["--nothing"], ["ps", "--nothing"], ["why"], ["ps", "--interval", "x"]]
)
def test_wrong_usage_is_one_sentence(tierline: Tierline, arguments: list[str]) -> None:
    assert "--help" in tierline(*arguments).sentence


def test_values_that_do_not_fit_are_told_in_plain_words(tierline: Tierline) -> None:
    assert "'--interval'" in tierline("ps", "--interval", "x").sentence
    for words in (["ps", "--interval", "x"], ["up", "--slots", "two"], ["submit", "--steps", "-1", "--", "true"]):
        assert "Input should" not in tierline(*words).sentence


def test_a_group_without_a_command_shows_its_help_alone(tierline: Tierline) -> None:
    answer = tierline("simulate")
    assert (answer.code, answer.err) == (2, "")
    assert "jobs" in answer.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--policy", "fifi"], "did you mean 'fifo'"),
        (["--fair-by", "jobs"], "--fair-by 'jobs': did you mean 'job'"),
        (["--slots", "0"], "--slots 0"),
        (["--quantum", "0"], "--quantum 0"),
        (["--listen", "8642"], "--listen '8642'"),
        (["--config", "gone.toml"], "'gone.toml' cannot be read"),
    ],
)
def test_what_up_cannot_use_makes_no_folder(
    tierline: Tierline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], said: str
) -> None:
    monkeypatch.setenv("TIERLINE_HOME", str(tmp_path / "home"))
    assert said in tierline("up", "--detach", *arguments).sentence
    assert not (tmp_path / "home").exists()


def test_version(tierline: Tierline) -> None:
    answer = tierline("--version")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out.startswith("tierline 0.")


def test_policies_are_told_from_the_registry(tierline: Tierline) -> None:
    shown = json.loads(tierline("policies", "--json").out)["policies"]
    assert [policy["name"] for policy in shown] == list(POLICIES)
    for policy in shown:
        assert all(policy[key] for key in ("idea", "source", "inputs", "memory", "cost")), policy
    assert all(name in tierline("policies").out for name in POLICIES)


def test_doctor_looks_at_everything_and_never_fails(
    tierline: Tierline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TIERLINE_HOME", str(tmp_path / "none"))
    monkeypatch.delenv("TIERLINE_URL", raising=False)
    findings = {f["what"]: f for f in json.loads(tierline("doctor", "--json").out)["findings"]}
    wanted = ["Python", "Processors", "GPUs", "CUDA driver", "MPS", "Nsight Compute", "Compilers", "Kernel tier"]
    assert list(findings) == [*wanted, "cgroup v2", "Extras", "Daemon", "State", "Disk"]
    assert findings["Daemon"]["verdict"] == "lacks"
    assert "tierline up" in findings["Daemon"]["hint"]
    assert all(finding["hint"] for finding in findings.values() if finding["verdict"] == "lacks")
    assert not (tmp_path / "none").exists()
    assert tierline("doctor").code == 0


def test_a_check_of_the_doctor_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch, tierline: Tierline) -> None:
    from tierline.cli import doctor

    def broken() -> doctor.Finding:
        raise RuntimeError("no")

    monkeypatch.setattr(doctor, "CHECKS", (broken,))
    answer = tierline("doctor", "--json")
    assert answer.code == 0
    assert "RuntimeError('no')" in json.loads(answer.out)["findings"][0]["detail"]
