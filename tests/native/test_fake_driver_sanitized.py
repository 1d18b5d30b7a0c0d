"""The fake driver and its clients built with a sanitizer: any report fails the program."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from .fake_driver_runs import LIMIT_S

CLIENTS = (
    "door_plain",
    "door_dlsym",
    "door_getproc",
    "door_static_runtime",
    "args_overwritten",
    "capture",
    "graph",
    "memory_hog",
    "nccl_like",
    "spin",
    "threads",
    "cublas_shapes",
    "cudnn_shapes",
)


@pytest.mark.slow
@pytest.mark.parametrize("clock", ["virtual", "wall", "shared"])
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_no_report(native_build, sanitizer: str, clock: str, tmp_path: Path) -> None:
    build = native_build(sanitizer)
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("FAKECUDA_", "TIERLINE_"))}
    environment |= {
        "LD_LIBRARY_PATH": str(build / "package/tierline/_lib/fake"),
        "FAKECUDA_CLOCK": "virtual" if clock == "virtual" else "wall",
        "FAKECUDA_LOG": str(tmp_path / "log"),
        "FAKECUDA_TRUTH": str(tmp_path / "truth"),
    }
    if clock == "shared":
        environment["FAKECUDA_SHARED"] = str(tmp_path / "device")
    for client in CLIENTS:
        outcome = subprocess.run(
            [build / "bin" / client], env=environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        assert outcome.returncode == 0, f"{client}: {outcome.stderr[-4000:]}"
        assert "Sanitizer" not in outcome.stderr, f"{client}: {outcome.stderr[-4000:]}"
