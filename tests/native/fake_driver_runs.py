"""Running client programs on the fake driver."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LIMIT_S = 60.0


@dataclass(frozen=True)
class Runs:
    """`runs("graph", "--launches", "3", FAKECUDA_CLOCK="wall")` gives the client's JSON object."""

    find: Callable[[str], Path]
    libraries: Path

    def environment(self, **variables: str) -> dict[str, str]:
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("FAKECUDA_", "TIERLINE_", "LD_"))
        }
        return {**kept, "LD_LIBRARY_PATH": str(self.libraries), **variables}

    def start(self, name: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        command = [str(self.find(name)), *arguments]
        environment = self.environment(**variables)
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def finished(self, name: str, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.find(name)), *arguments]
        environment = self.environment(**variables)
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S)

    def __call__(self, name: str, *arguments: str, **variables: str) -> Any:
        outcome = self.finished(name, *arguments, **variables)
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        return json.loads(outcome.stdout)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def calls(path: Path, name: str) -> list[dict[str, Any]]:
    return [line for line in lines(path) if line.get("call") == name]
