"""What an exit record means."""

from __future__ import annotations

import pytest

from tierline.backends.jobs.outcome import outcome_of

RECORD = {
    "returncode": 0,
    "error": "",
    "out_of_memory": False,
    "asked": "",
    "forced": False,
    "last_line": "",
    "tail": "",
}


@pytest.mark.parametrize(
    ("changes", "outcome", "reason"),
    [
        ({}, "completed", "exit code 0"),
        ({"returncode": 3}, "failed", "exit code 3"),
        ({"returncode": 3, "last_line": "boom"}, "failed", "exit code 3; last line: boom"),
        ({"returncode": -11}, "failed", "killed by signal 11 (SIGSEGV)"),
        ({"returncode": -40}, "failed", "killed by signal 40"),
        ({"returncode": -9, "out_of_memory": True}, "failed", "out of memory (killed by signal 9 (SIGKILL))"),
        ({"returncode": 1, "tail": "x: No space left on device\n"}, "failed", "no space left on device (exit code 1)"),
        ({"error": "cannot start: x", "returncode": None}, "failed", "cannot start: x"),
        ({"asked": "preempt"}, "preempted", "left as asked, exit code 0"),
        ({"asked": "preempt", "returncode": 1}, "preempted", "left as asked, exit code 1"),
        ({"asked": "stop"}, "stopped", "left as asked, exit code 0"),
        (
            {"asked": "preempt", "returncode": -9, "forced": True},
            "preempted",
            "did not leave within its grace period and was killed",
        ),
        ({"asked": "terminated"}, "lost", "its supervisor was told to terminate, as when the machine shuts down"),
    ],
)
def test_outcomes(changes, outcome, reason):
    assert outcome_of({**RECORD, **changes}, 10, 9)[:2] == (outcome, reason)


@pytest.mark.parametrize(
    ("total", "newest", "code", "outcome"),
    [(10, 10, 0, "completed"), (10, 9, 0, "preempted"), (0, 10, 0, "preempted"), (10, 10, 1, "preempted")],
)
def test_a_preempted_job_that_is_done_is_completed(total, newest, code, outcome):
    assert outcome_of({**RECORD, "asked": "preempt", "returncode": code}, total, newest)[0] == outcome
