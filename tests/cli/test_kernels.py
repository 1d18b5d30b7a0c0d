"""`tierline kernels` and `tierline calibrate`: what they print, and what they say when there is nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tierline.cli import calibrate
from tierline.kernels import calibration as calibration_module
from tierline.kernels.calibration import Calibration, CorunCell, Figure, known_limits, path_of, write_calibration
from tierline.policies.kernels import POLICIES

from .conftest import Outcome

Tierline = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME"):
        (tmp_path / variable).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / variable))
    return tmp_path


def made(**changes: object) -> Calibration:
    record = {
        "device": "NVIDIA H200", "is_simulated": False, "driver": "13.0", "compute_capability": "9.0",
        "memory_bytes": 141 << 30, "sms": 132, "sm_clock_hz": 1_980_000_000, "memory_clock_hz": 3_201_000_000,
        "l2_bytes": 60 << 20, "flops": {"16-bit": Figure(7.8e14, "measured"), "fp32": Figure(5e13, "attributes")},
        "bytes_per_s": Figure(4.3e12, "measured"), "host_to_device_bytes_per_s": Figure(5.5e10, "measured"),
        "device_to_host_bytes_per_s": Figure(0.0, "unknown"),
        "corun": (CorunCell("compute", "memory", 1.25), CorunCell("memory", "compute", 1.5)), "measured_at_s": 1_700_000_000,
    }  # fmt: skip
    return Calibration(**(record | changes))  # type: ignore[arg-type]


def test_the_policies_with_their_sources(tierline: Tierline) -> None:
    known = json.loads(tierline("kernels", "policies", "--json").out)["policies"]
    assert [policy["name"] for policy in known] == list(POLICIES)
    assert all(policy["idea"] and policy["source"] for policy in known)
    assert all(name in tierline("kernels", "policies").out for name in POLICIES)


def test_nothing_is_shared_yet(tierline: Tierline) -> None:
    assert "tierline run -- CMD" in tierline("kernels", "list").out
    assert json.loads(tierline("kernels", "list", "--json").out) == {"regions": []}
    assert "there is none yet" in tierline("kernels", "report").sentence
    assert "there is none yet" in tierline("kernels", "report", "h200").sentence


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--window", "1:2"], "--window narrows the picture"),
        (["--window", "1", "--picture", "p.png"], "--window '1': two times in milliseconds"),
        (["--window", "a:b", "--picture", "p.png"], "--window 'a:b'"),
    ],
)
def test_windows_that_are_none(tierline: Tierline, words: list[str], said: str) -> None:
    assert said in tierline("kernels", "report", *words).sentence


def test_a_profile_is_shown_and_converted(tierline: Tierline, tmp_path: Path) -> None:
    path = tmp_path / "orion.csv"
    path.write_text("Name,Profile,Memory_footprint,SM_usage,Duration\nConv,1,0,98,100480\nBN,0,0,40,20000\n")
    shown = tierline("kernels", "profile", str(path)).out.splitlines()
    assert shown[1].split() == ["Conv", "any", "any", "100µs", "60%", "30%", "compute", "1", "orion"]
    ours = tmp_path / "ours.csv"
    assert tierline("kernels", "profile", str(path), "-o", str(ours)).out == f"2 kernels written to {ours}.\n"
    again = json.loads(tierline("kernels", "profile", str(ours), "--json").out)["profiles"]
    assert [row["name"] for row in again] == ["Conv", "BN"]
    path.write_text("Name,Profile\n")
    assert "orion.csv, line 1: an Orion profile has the columns" in tierline("kernels", "profile", str(path)).sentence
    assert (
        "cannot be written" in tierline("kernels", "profile", str(ours), "-o", str(tmp_path / "no" / "x.csv")).sentence
    )


# ---- calibration -------------------------------------------------------------------------------------------------------


def test_a_calibration_for_a_reader() -> None:
    text = "\n".join(calibrate.lines(made()))
    for said in (
        "NVIDIA H200: compute",
        "132 SMs",
        "780.0 TFLOP/s  measured",
        "4300.0 GB/s  measured",
        "BESIDE memory",
    ):
        assert said in text
    assert [line.split() for line in text.splitlines() if line.startswith("compute ")] == [["compute", "-", "1.25x"]]
    assert "device to host - unknown" in " ".join(text.split())
    assert "simulated device" not in text
    simulated = "\n".join(calibrate.lines(made(device="h200", is_simulated=True, corun=())))
    assert "h200 (simulated device)" in simulated
    assert "not measured (it needs PyTorch)" in simulated


def test_a_calibration_is_kept_and_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_module, "_nvml_name", lambda device: "NVIDIA H200")
    sheet = known_limits(0)
    assert sheet is not None
    assert (sheet.sms, sheet.flops_per_s) == (132, 9.89e14)
    path = path_of("NVIDIA H200", is_simulated=False)
    assert path.name == "nvidia-h200.json"
    write_calibration(made(), path)
    limits = known_limits(0)
    assert limits is not None
    assert limits.spec == "132:7.8e+14:4.3e+12"
    assert calibration_module.read_calibration(path) == made()
    simulated = known_limits(0, "h200")
    assert simulated is not None
    assert simulated.flops_per_s == 9.89e14  # the real device's calibration is not the simulated one's


def test_a_calibration_that_cannot_be_read_or_written(tierline: Tierline, folders: Path) -> None:
    path = path_of("h200", is_simulated=True)
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    with pytest.raises(calibration_module.InvalidInput, match="run `tierline calibrate device` again"):
        known_limits(0, "h200")
    with pytest.raises(calibration_module.StateUnusable, match="cannot be written"):
        write_calibration(made(), Path("/proc/no/x.json"))


def test_an_unknown_simulated_device(tierline: Tierline) -> None:
    sentence = tierline("calibrate", "device", "--fake", "h300").sentence
    assert "unknown simulated device 'h300'" in sentence
