"""Who has a device: one manager, many users, and regions that fit or are made anew."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tierline.core.errors import InvalidInput, MissingNative, NotFound, Refused, StateUnusable
from tierline.kernels import place
from tierline.kernels.native import DeviceLimits, open_region

HOLD = """
import sys
from tierline.kernels.place import managing, place_of
with managing(place_of(0)):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_the_runtime_folder_is_private(folders: Path) -> None:
    folder = place.runtime_dir()
    assert folder == folders / "run" / "tierline" / "kernels"
    folder.chmod(0o755)
    assert stat.S_IMODE(place.runtime_dir().stat().st_mode) == 0o700


def test_a_runtime_folder_of_somebody_else_is_refused(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folders / "other").mkdir()
    (folders / "run" / "tierline").symlink_to(folders / "other")
    with pytest.raises(StateUnusable, match=r"is not ours; set XDG_RUNTIME_DIR"):
        place.runtime_dir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/proc/no")
    with pytest.raises(StateUnusable, match="cannot be used"):
        place.runtime_dir()


def test_two_managers_on_one_device_and_the_pid_of_the_first() -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        where = place.place_of(0)
        assert place.manager_pid(where) == other.pid
        with (
            pytest.raises(Refused, match=rf"device 0 is managed by process {other.pid} already"),
            place.managing(where),
        ):
            pass
        with place.managing(place.place_of(1)):  # another device is free
            pass
        other.communicate()
    assert place.manager_pid(where) == 0
    with place.managing(where):
        assert place.manager_pid(where) == os.getpid()


def test_the_first_user_makes_the_region_and_others_join(native: ModuleType) -> None:
    where = place.place_of(0)
    first = place.take_region(where, "orion", None)
    config = open_region(where.region).config()
    assert (config.policy, config.mode) == ("orion", "latency")
    second = place.take_region(where)
    with pytest.raises(
        Refused, match=r"in use with policy 'orion' and mode 'latency' \(process 77 began it\), not policy 'tgs'"
    ):
        place.take_region(where, "tgs")
    with pytest.raises(Refused, match="not mode 'strict'"):
        place.take_region(where, mode="strict")
    os.close(first)
    with pytest.raises(Refused):  # the second one is there still
        place.take_region(where, "tgs")
    os.close(second)
    os.close(place.take_region(where))  # nobody uses it: the defaults hold, not what was left there
    assert open_region(where.region).config().policy == "interference"


def test_the_region_begins_anew_with_its_first_user_and_stays_when_the_last_one_ends(native: ModuleType) -> None:
    where = place.place_of(0)
    os.close(place.take_region(where, "orion", "strict", DeviceLimits(108, 3.12e14, 2e12)))
    config = open_region(where.region).config()
    assert (config.policy, config.device.sms) == ("orion", 108)
    first = place.take_region(where, device=DeviceLimits(132, 9.89e14, 4.8e12))
    config = open_region(where.region).config()
    assert (config.policy, config.device.sms) == ("interference", 132)
    before = where.region.stat().st_ino
    second = place.take_region(where, device=DeviceLimits(80, 1.25e14, 9e11))
    assert where.region.stat().st_ino == before  # it is in use: the second one joins as it is
    os.close(first)
    os.close(second)


def test_a_region_of_another_build(native: ModuleType) -> None:
    where = place.place_of(0)
    where.region.write_bytes(b"older")
    users = place.take_region(where)  # nobody uses it: made anew
    assert open_region(where.region).config().policy == "interference"
    where.region.write_bytes(b"older")
    with pytest.raises(Refused, match=r"in use, but not by this Tierline: .*not a region of this version"):
        place.take_region(where)
    os.close(users)


def test_a_full_file_system_is_told(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: str, config: object) -> None:
        raise RuntimeError(f"cannot make the region {path}: {os.strerror(errno.ENOSPC)}")

    monkeypatch.setattr(native.Region, "create", full)
    with pytest.raises(StateUnusable, match=r"There is no room for a region in .* MiB free\): make room there"):
        place.take_region(place.place_of(0))
    assert place.manager_pid(place.place_of(0)) == 0

    def denied(path: str, config: object) -> None:
        raise RuntimeError(f"cannot make the region {path}: Permission denied")

    monkeypatch.setattr(native.Region, "create", denied)
    with pytest.raises(StateUnusable, match="Permission denied"):
        place.take_region(place.place_of(0))


def test_without_the_native_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tierline._native", None)
    with pytest.raises(MissingNative, match="scripts/native"):
        place.take_region(place.place_of(0))


def test_finding_a_region(native: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="there is none yet"):
        place.find_region("0")
    os.close(place.take_region(place.place_of(0)))
    os.close(place.take_region(place.place_of(0, "h200")))
    assert place.find_region("0") == place.find_region("device-0") == place.place_of(0).region
    assert place.find_region("h200") == place.place_of(0, "h200").region
    assert place.find_region(str(place.place_of(0).region)) == place.place_of(0).region
    with pytest.raises(NotFound, match="there are device-0, simulated-h200"):
        place.find_region("../1")
    with pytest.raises(InvalidInput, match="--device -1"):
        place.place_of(-1)


def test_a_simulated_device_begins_anew_with_its_first_user(native: ModuleType) -> None:
    where = place.place_of(0, "h200")
    assert where.is_simulated
    assert where.title == "simulated device h200"
    where.fake_device.write_bytes(b"state")
    first = place.take_region(where)
    assert not where.fake_device.exists()
    where.fake_device.write_bytes(b"state")
    second = place.take_region(where)
    assert where.fake_device.exists()
    os.close(first)
    os.close(second)
