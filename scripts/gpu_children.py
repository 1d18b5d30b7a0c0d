"""Child processes of scripts/gpu_kernels.py: every wait has a bound, what they said is kept, none outlives its owner."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TAIL_LINES = 12
LEAVE_S = 5.0


class ChildFailed(RuntimeError):
    """A child ended badly or did not answer in time; the message holds the end of what it said."""


class Child:
    """A process that prints lines of JSON and takes lines on its stdin. Use as a context manager."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path) -> None:
        self.argv, self.log = list(argv), log
        with open(log, "wb") as errors:
            self.process = subprocess.Popen(
                self.argv,
                env=dict(env),
                cwd=cwd,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                start_new_session=True,
            )
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def answer(self, limit_s: float, at: str = "") -> dict[str, Any]:
        """The next line of JSON, or the next with this `at`. Raises `ChildFailed`."""
        until_s = time.monotonic() + limit_s
        said: list[str] = []
        while True:
            try:
                line = self._lines.get(timeout=max(until_s - time.monotonic(), 0.0))
            except queue.Empty:
                raise ChildFailed(f"no answer within {limit_s:.0f} s{self._tail(said)}") from None
            if line is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(LEAVE_S)
                raise ChildFailed(f"ended with exit code {self.process.poll()}{self._tail(said)}")
            with contextlib.suppress(json.JSONDecodeError):
                record = json.loads(line)
                if isinstance(record, dict) and record.get("at", "") == at:
                    return record
            said.append(line)

    def say(self, line: str = "") -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # its exit code is told by the next answer
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def finish(self, limit_s: float) -> None:
        """Close its input and wait for its end."""
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(limit_s)
        self.close()

    def close(self) -> None:
        """Whatever is left of it and of what it started is killed."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        assert self.process.stdin is not None and self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self._reader.join(LEAVE_S)
        if not self._reader.is_alive():  # else something that left the process group has the pipe open
            self.process.stdout.close()

    def _tail(self, said: Sequence[str]) -> str:
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        lines = [line.rstrip() for line in [*said, *text.splitlines()] if line.strip()][-TAIL_LINES:]
        return (": " + " | ".join(lines))[:1500] if lines else ", without a word"


def run_to_end(argv: Sequence[str], env: Mapping[str, str], log: Path, cwd: Path, limit_s: float) -> tuple[int, str]:
    """Exit code and output (both streams; also in `log`) of a command; -1 when it was killed at its limit."""
    with open(log, "wb") as output:
        process = subprocess.Popen(
            list(argv), env=dict(env), cwd=cwd, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = -1
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, log.read_text(encoding="utf-8", errors="replace")
