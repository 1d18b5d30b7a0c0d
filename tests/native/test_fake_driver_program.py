"""The runner of the engine's workload programs."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from .fake_driver_runs import LIMIT_S, Runs, lines


@pytest.fixture(scope="module")
def runs(native_bin, fake_driver: Path) -> Runs:
    return Runs(native_bin, fake_driver)


def names(runs: Runs) -> list[str]:
    return [line.split()[0] for line in runs.finished("fake-program", "--list").stdout.splitlines()]


def test_every_program_runs(runs: Runs) -> None:
    listed = names(runs)
    assert len(listed) >= 8
    for name in listed:
        outcome = runs.finished("fake-program", name, "--iterations", "3")
        assert outcome.returncode == 0, f"{name}: {outcome.stderr}"
        *steps, last = (json.loads(line) for line in outcome.stdout.splitlines())
        assert [step["step"] for step in steps] == [1, 2, 3], name
        assert all(step["latency_ns"] > 0 for step in steps)
        assert steps[0]["loss"] > steps[2]["loss"]
        assert last["program"] == name
        assert last["simulated_device"] is True
        assert last["elapsed_ns"] >= max(step["latency_ns"] for step in steps)


def test_it_finds_the_driver_beside_it(runs: Runs) -> None:
    environment = {**runs.environment(), "LD_LIBRARY_PATH": ""}
    outcome = runs.finished("fake-program", "mlp-train", "--iterations", "1", **environment)
    assert outcome.returncode == 0, outcome.stderr


def test_more_requests_wait_longer(runs: Runs) -> None:
    server = "vision-server"
    seldom, often = (
        json.loads(runs.finished("fake-program", server, "--iterations", "300", "--rate", rate, "--quiet").stdout)
        for rate in ("100", "1800")
    )
    assert seldom["p99_ns"] < often["p99_ns"]
    assert seldom["per_second"] < often["per_second"]


def test_it_reports_as_a_job(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "reports"
    runs.finished("fake-program", "mlp-train", "--iterations", "4", TIERLINE_REPORT_FILE=str(path))
    reports = lines(path)
    assert [report["step"] for report in reports] == [1, 2, 3, 4]
    assert all(set(report) == {"step", "loss", "time_ns"} for report in reports)


def test_stopped_it_saves_its_step_and_goes_on_from_there(runs: Runs, tmp_path: Path) -> None:
    job = {"TIERLINE_REPORT_FILE": str(tmp_path / "reports"), "TIERLINE_CHECKPOINT_DIR": str(tmp_path)}
    process = runs.start("fake-program", "mlp-train", "--iterations", "100000000", FAKECUDA_CLOCK="wall", **job)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 0, errors
    done = json.loads(output.splitlines()[-1])["iterations"]
    again = runs.finished("fake-program", "mlp-train", "--iterations", str(done + 2), TIERLINE_RESUME="1", **job)
    assert [json.loads(line)["step"] for line in again.stdout.splitlines()[:-1]] == [done + 1, done + 2]


def test_it_stops_when_the_flag_lies_there(runs: Runs, tmp_path: Path) -> None:
    (tmp_path / "attempt-2").mkdir()
    (tmp_path / "attempt-2/stop").touch()
    outcome = runs.finished(
        "fake-program", "mlp-train", TIERLINE_REPORT_FILE=str(tmp_path / "reports"), TIERLINE_ATTEMPT="2"
    )
    assert json.loads(outcome.stdout)["iterations"] == 0


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["no-such-program"], "no program is named 'no-such-program'; there are"),
        ([], "give the name of a program"),
        (["mlp-train", "--iterations", "none"], "--iterations takes a number above 0; given: none"),
        (["mlp-train", "--fast"], "'--fast' is unknown"),
    ],
)
def test_wrong_arguments_are_told(runs: Runs, arguments: list[str], told: str) -> None:
    outcome = runs.finished("fake-program", *arguments)
    assert outcome.returncode == 2
    assert told in outcome.stderr


def test_a_device_that_is_too_small_is_told(runs: Runs) -> None:
    outcome = runs.finished("fake-program", "llm-decode-batch", FAKECUDA_MEMORY=str(1 << 30))
    assert outcome.returncode == 3
    assert "out of memory" in outcome.stderr
