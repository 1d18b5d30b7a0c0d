"""The demo on a small budget: it ends by itself, with a table and a plot, and leaves nothing running or lying about."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 180


def processes_mentioning(text: str) -> list[str]:
    """Command lines of processes that have `text` in their command line or environment."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal() and int(folder.name) != os.getpid():
            try:
                command, environment = (folder / "cmdline").read_bytes(), (folder / "environ").read_bytes()
            except OSError:
                continue  # it has just ended, or is not ours
            if text.encode() in command + environment:
                found.append(command.replace(b"\0", b" ").decode())
    return found


def test_the_demo_runs_and_cleans_up(tmp_path: Path) -> None:
    pytest.importorskip("sklearn", reason="the extra 'demo' is not installed")
    pytest.importorskip("matplotlib", reason="the extra 'demo' is not installed")
    folder = tmp_path / "t"
    folder.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TIERLINE_")}
    plot = tmp_path / "plots" / "demo.png"
    command = [sys.executable, "scripts/demo.py", "--seconds", "4", "--policies", "explsched,fifo", "--plot", str(plot)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment | {"TMPDIR": str(folder), "PATH": path},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    table = {
        line.split("│")[1].strip(): line.split("│")[2:-1] for line in done.stdout.splitlines() if line.startswith("│")
    }
    tried = [int(cell) for cell in table["trials that got to report"]]
    assert tried[0] > tried[1], "in so short a time fifo gets to its first trials alone"
    assert all(0 <= float(cell) < 24 for cell in table["total utility"])
    assert f"Plot: {plot}" in done.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert list(folder.iterdir()) == []
    assert processes_mentioning(str(folder)) == []
