"""Calibration by the driver's own interface, on the fake driver; in processes of their own: it reads its settings once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def tierline(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "XDG_DATA_HOME": str(folder), "XDG_RUNTIME_DIR": str(folder)}
    command = [sys.executable, "-m", "tierline.cli.main", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize(
    ("name", "sms", "capability"), [("h200", 132, "9.0"), ("a100", 108, "8.0"), ("v100", 80, "7.0")]
)
def test_a_simulated_device_is_calibrated(
    fake_driver: Path, tmp_path: Path, name: str, sms: int, capability: str
) -> None:
    done = tierline(tmp_path, "calibrate", "device", "--fake", name, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["device"], found["is_simulated"]) == (name, True)
    assert (found["sms"], found["compute_capability"]) == (sms, capability)
    assert Path(found["path"]) == tmp_path / "tierline" / "devices" / f"simulated-{name}.json"
    assert json.loads(Path(found["path"]).read_text())["sms"] == sms
    # A copy reaches most of what the clocks promise, and not more; the host link is far slower.
    bandwidth = found["bytes_per_s"]["value"]
    assert 5e11 < bandwidth < 6e12
    assert found["host_to_device_bytes_per_s"]["value"] < bandwidth / 5
    slowdowns = {(cell["probe"], cell["beside"]): cell["slowdown"] for cell in found["corun"]}
    assert len(slowdowns) == 9
    assert all(slowdown > 0.98 for slowdown in slowdowns.values())
    assert slowdowns["compute", "compute"] > 1.4  # two of one bound class share what there is
    assert slowdowns["memory", "memory"] > 1.4
    assert slowdowns["compute", "small"] < 1.1


def test_it_is_shown_as_simulated_and_told_where_it_lies(fake_driver: Path, tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    done = tierline(tmp_path, "calibrate", "device", "--fake", "h200", "-o", str(path))
    assert done.returncode == 0
    assert "h200 (simulated device)" in done.stdout
    assert done.stdout.endswith(f"Written to {path}.\n")
    assert json.loads(path.read_text())["is_simulated"] is True
