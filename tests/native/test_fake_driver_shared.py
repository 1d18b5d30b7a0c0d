"""One simulated device for several processes, any of which may be killed at any moment."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from .fake_driver_runs import Runs

BOUND_S = 30.0


@pytest.fixture(scope="module")
def runs(native_bin, fake_driver: Path) -> Runs:
    return Runs(native_bin, fake_driver)


@pytest.fixture
def device(tmp_path: Path) -> dict[str, str]:
    return {"FAKECUDA_SHARED": str(tmp_path / "device"), "FAKECUDA_CLOCK": "wall"}


def summary(text: str) -> dict[str, object]:
    told = json.loads(text.splitlines()[-1])
    assert isinstance(told, dict)
    return told


def wait_for_first_line(process) -> None:
    assert process.stdout is not None
    assert process.stdout.readline().startswith("{")


def test_two_processes_run_on_one_device(runs: Runs, device: dict[str, str], tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    other = runs.start("fake-program", "gemm-batch", "--iterations", "100000", **device)
    try:
        wait_for_first_line(other)
        ours = runs.finished(
            "fake-program",
            "mlp-train",
            "--iterations",
            "200",
            **device,
            FAKECUDA_TRUTH=str(truth),
            FAKECUDA_CLIENT="ours",
        )
    finally:
        other.kill()
        other.communicate()
    assert summary(ours.stdout)["iterations"] == 200, ours.stderr
    told = json.loads(truth.read_text())
    assert told["label"] == "ours"
    assert {kernel["client"] for kernel in told["kernels"]} >= {1, 2}
    assert told["shared_ns"] > 0
    assert told["shared_sm_peak"] > 0


def test_without_mps_processes_take_turns(runs: Runs, device: dict[str, str], tmp_path: Path) -> None:
    truth = tmp_path / "truth"
    device["FAKECUDA_MPS"] = "0"
    other = runs.start("fake-program", "gemm-batch", "--iterations", "100000", **device)
    try:
        wait_for_first_line(other)
        runs.finished("fake-program", "mlp-train", "--iterations", "50", **device, FAKECUDA_TRUTH=str(truth))
    finally:
        other.kill()
        other.communicate()
    told = json.loads(truth.read_text())
    assert {kernel["client"] for kernel in told["kernels"]} >= {1, 2}
    assert told["shared_ns"] == 0


def test_a_member_killed_at_any_moment_leaves_a_whole_device(runs: Runs, device: dict[str, str]) -> None:
    survivor = runs.start("fake-program", "mlp-train", "--iterations", "3000", "--quiet", **device)
    try:
        for round_number in range(8):
            victim = runs.start("fake-program", "preprocess", "--iterations", "100000", **device)
            wait_for_first_line(victim)
            time.sleep(0.003 * round_number)  # another moment each time; nothing is asserted about it
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
        output, errors = survivor.communicate(timeout=BOUND_S)
    finally:
        survivor.kill()
        survivor.communicate()
    assert survivor.returncode == 0, errors
    assert summary(output)["iterations"] == 3000


def test_a_dead_members_memory_is_free_again(runs: Runs, device: dict[str, str]) -> None:
    size = {"FAKECUDA_MEMORY": str(16 << 30)}
    keeper = runs.start("fake-program", "mlp-train", "--iterations", "1000000", **device, **size)
    hog = runs.start("fake-program", "spinning", "--iterations", "1000000", **device, **size)
    try:
        wait_for_first_line(keeper)
        wait_for_first_line(hog)
        before = runs("memory_hog", "--most", "0", **device, **size)["free_before"]
        hog.kill()
        hog.communicate()
        after = runs("memory_hog", "--most", "0", **device, **size)["free_before"]
    finally:
        for process in (keeper, hog):
            process.kill()
            process.communicate()
    assert before < after < 16 << 30


def test_a_device_that_nobody_uses_begins_afresh(runs: Runs, device: dict[str, str]) -> None:
    virtual = {**device, "FAKECUDA_CLOCK": "virtual"}
    assert runs("door_plain", **virtual)["device_ns"] == runs("door_plain", **virtual)["device_ns"]


def test_all_members_want_the_same_device(runs: Runs, device: dict[str, str]) -> None:
    member = runs.start("fake-program", "mlp-train", "--iterations", "1000000", **device)
    try:
        wait_for_first_line(member)
        outcome = runs.finished("door_plain", **device, FAKECUDA_DEVICE="a100")
    finally:
        member.kill()
        member.communicate()
    assert outcome.returncode == 1
    assert "'a100" not in outcome.stdout
    assert "the device there is 'h200" in outcome.stderr


def test_a_file_that_is_something_else_is_left_alone(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "letter"
    path.write_text("dear reader")
    outcome = runs.finished("door_plain", FAKECUDA_SHARED=str(path))
    assert outcome.returncode == 1
    assert "no shared device" in outcome.stderr
    assert path.read_text() == "dear reader"
