"""What a program finds in its environment, and the ends of several programs."""

from __future__ import annotations

import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tierline.backends.kernels.cuda import Company, Target, program_environment
from tierline.core.errors import InvalidInput
from tierline.kernels import environment
from tierline.kernels.native import DeviceLimits
from tierline.kernels.place import DevicePlace
from tierline.kernels.program import Program

LIMIT_S = 30.0


@pytest.fixture
def target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A device whose preload library is not really one; programs are started without it."""
    for name in ("libtierline_interpose.so", "fake/libcuda.so.1"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.setattr(environment, "LIB", tmp_path)
    return Target(DevicePlace(tmp_path, "device-2"), 2, "", "orion", "strict", DeviceLimits(132, 9.89e14, 4.8e12))


@pytest.fixture
def descriptor() -> int:
    opened = os.open("/dev/null", os.O_RDONLY)
    yield opened
    os.close(opened)


def test_ours_goes_before_the_programs_own_and_that_before_the_base(target: Target) -> None:
    program = Program(
        ("x",), "x", "high", env=(("A", "program"), ("TIERLINE_POLICY", "free"), ("LD_PRELOAD", "/own.so"))
    )
    env = program_environment(program, target, {"A": "base", "B": "base", "CUDA_VISIBLE_DEVICES": "7"})
    assert (env["A"], env["B"], env["TIERLINE_POLICY"]) == ("program", "base", "orion")
    assert env["LD_PRELOAD"].endswith("libtierline_interpose.so:/own.so")
    assert (env["CUDA_VISIBLE_DEVICES"], env["CUDA_DEVICE_ORDER"]) == ("2", "PCI_BUS_ID")
    assert env["TIERLINE_ARBITER"] == str(target.place.region)
    assert env["TIERLINE_DEVICE_SPEC"] == "132:9.89e+14:4.8e+12"


def test_on_a_simulated_device_the_gpus_are_left_as_they_are(target: Target) -> None:
    fake = replace(target, place=DevicePlace(target.place.folder, "simulated-a100"), fake="a100", limits=None)
    env = program_environment(Program(("x",), "x"), fake, {"CUDA_VISIBLE_DEVICES": "7"})
    assert env["CUDA_VISIBLE_DEVICES"] == "7"
    assert (env["FAKECUDA_DEVICE"], env["FAKECUDA_SHARED"]) == ("a100", str(fake.place.fake_device))
    assert "TIERLINE_DEVICE_SPEC" not in env


def company(
    target: Target, descriptor: int, monkeypatch: pytest.MonkeyPatch, *scripts: str, say=lambda *_: None
) -> Company:
    monkeypatch.setattr("tierline.backends.kernels.cuda.kernel_environment", lambda *_, **__: {})
    programs = [Program(("sh", "-c", script), f"p{i}") for i, script in enumerate(scripts)]
    return Company(programs, target, descriptor, {"EXTRA": "1"}, say)


def until_all_have_ended(running: Company) -> list[int | None]:
    deadline = time.monotonic() + LIMIT_S
    while running.poll():
        assert time.monotonic() < deadline, "the programs did not end"
        time.sleep(0.01)
    return [each.exit_code for each in running.running]


def test_exit_codes_and_lines(target: Target, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[tuple[str, str, bool]] = []
    lock = threading.Lock()

    def say(name: str, line: str, is_error: bool) -> None:
        with lock:
            said.append((name, line, is_error))

    scripts = ("echo $EXTRA; exit 3", "echo no >&2; kill -9 $$", "printf last")
    with company(target, descriptor, monkeypatch, *scripts, say=say) as running:
        assert until_all_have_ended(running) == [3, 128 + signal.SIGKILL, 0]
    assert sorted(said) == [("p0", "1", False), ("p1", "no", True), ("p2", "last", False)]


def test_a_signal_reaches_what_a_program_has_started(
    target: Target, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with company(target, descriptor, monkeypatch, "sleep 60 | cat") as running:
        running.send(signal.SIGTERM)
        assert until_all_have_ended(running) == [128 + signal.SIGTERM]


def test_whoever_is_left_is_killed(target: Target, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with company(target, descriptor, monkeypatch, "sleep 60", "true") as running:
        pids = [each.process.pid for each in running.running]
    assert running.running[0].exit_code == 128 + signal.SIGKILL
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_one_that_cannot_start_takes_the_others_with_it(
    target: Target, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tierline.backends.kernels.cuda.kernel_environment", lambda *_, **__: {})
    programs = [Program(("sleep", "60"), "a"), Program(("/no/such",), "b")]
    with pytest.raises(InvalidInput, match="'/no/such' cannot be started"):
        Company(programs, target, descriptor, {}, lambda *_: None)
