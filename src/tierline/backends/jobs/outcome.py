"""What the end of an attempt means: a pure reading of the supervisor's exit record."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from typing import Any

from tierline.core.nouns import Outcome

_DISK_FULL = ("No space left on device", "Errno 28", "ENOSPC", "Disk quota exceeded", "File too large")


def outcome_of(record: Mapping[str, Any], total_steps: int, newest_step: int) -> tuple[Outcome, str, int | None]:
    """(outcome, reason for the user, exit code or None) of an attempt that left `record` behind.

    An attempt that was asked to leave did leave, whatever its exit code: `preempted` or `stopped`. One exception: a
    preempted job that exits with 0 after it reported its declared last step is `completed`, for nothing is left to do.
    A declared total of n steps is reached by a report of step n; a job that counts from 0 and is preempted just then
    starts once more and ends at once. What ended before the supervisor saw the wish ended by itself.
    """
    if record["error"]:
        return "failed", record["error"], None
    code: int = record["returncode"]
    asked, last_line = record["asked"], record["last_line"]
    if asked == "stop":
        return "stopped", _how_it_left(record), code
    if asked == "preempt":
        if code == 0 and 0 < total_steps <= newest_step:
            return "completed", "has done all of its steps", 0
        return "preempted", _how_it_left(record), code
    if asked == "terminated":
        return "lost", "its supervisor was told to terminate, as when the machine shuts down", code
    if code == 0:
        return "completed", "exit code 0", 0
    return "failed", _why_failed(record, code, last_line), code


def _how_it_left(record: Mapping[str, Any]) -> str:
    if record["forced"]:
        return "did not leave within its grace period and was killed"
    code = record["returncode"]
    return f"left as asked, {_named(code)}"


def _why_failed(record: Mapping[str, Any], code: int, last_line: str) -> str:
    end = f"; last line: {last_line}" if last_line else ""
    if record["out_of_memory"]:
        return f"out of memory ({_named(code)}{end})"
    if any(sign in record["tail"] for sign in _DISK_FULL):
        return f"no space left on device ({_named(code)}{end})"
    return _named(code) + end


def _named(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by signal {-code} ({signal.Signals(-code).name})"
    except ValueError:
        return f"killed by signal {-code}"
