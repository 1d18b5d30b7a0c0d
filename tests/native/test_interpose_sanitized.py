"""The preload library and its client built with a sanitizer: any report fails the program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

LIMIT_S = 120.0
RUNTIMES = {"thread": "libtsan.so", "address": "libasan.so"}
ACTIONS = (
    "launch",
    "threads",
    "capture",
    "events",
    "clients",
    "streams",
    "fork",
    "oom",
    "refused",
    "exempt",
    "dependent",
    "contend",
)


def runtime(name: str) -> str:
    """The sanitizer's own library: it has to come before ours in the preload list. clang links it statically."""
    found = subprocess.run(
        [os.environ.get("CXX", "c++"), f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if found == name:
        pytest.skip(f"the compiler has no {name}")
    return str(Path(found).resolve())


@pytest.mark.parametrize("sanitizer", sorted(RUNTIMES))
@pytest.mark.parametrize("action", ACTIONS)
def test_no_report(sanitizer: str, action: str, native_build: Callable[..., Path], tmp_path: Path) -> None:
    build = native_build(sanitizer)
    lib = build / "package/tierline/_lib"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TIERLINE_", "FAKECUDA_"))}
    env |= {
        "LD_PRELOAD": f"{runtime(RUNTIMES[sanitizer])}:{lib / 'libtierline_interpose.so'}",
        "LD_LIBRARY_PATH": str(lib / "fake"),
        "TIERLINE_ARBITER": str(tmp_path / "region"),
        "TIERLINE_LOG": str(tmp_path / "log"),
        "FAKECUDA_STRICT": "1",
        "FAKECUDA_CLOCK": "wall",
        "FAKECUDA_SCALE": "50",  # a sanitized program launches for longer, and all of it has to run
        "TSAN_OPTIONS": "report_thread_leaks=0:exitcode=66",
        # What lives as long as the process is meant to: the session outlives the program's own exit handlers.
        "ASAN_OPTIONS": "detect_leaks=0",
    }
    done = subprocess.run(
        [build / "bin/interpose_client", "gpa2", action, "20"], env=env, capture_output=True, text=True, timeout=LIMIT_S
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Sanitizer" not in done.stderr
