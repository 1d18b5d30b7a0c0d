"""Watches one attempt from the daemon's side, by files, locks and /proc alone: adopted attempts are no different."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Literal

from tierline.backends.jobs import cgroup
from tierline.backends.jobs.launch import marks
from tierline.backends.jobs.outcome import outcome_of
from tierline.backends.jobs.processes import boot_id, descendants, kill_all, start_ticks, with_environment
from tierline.backends.jobs.progress import ProgressReader
from tierline.backends.jobs.rundir import JobFolder, read_json, read_pid, write_json
from tierline.core.events import Event, JobExited, JobStarted, ProgressReported
from tierline.core.nouns import NS_PER_S, Job, Outcome, Report

logger = logging.getLogger(__name__)

_ANSWER_S = 15.0  # how much longer than the grace period a supervisor may take before it counts as stuck

Leaving = Literal["", "preempt", "stop"]


class AttemptWatch:
    """One attempt that has an intent on disk. `launcher` is the process that starts its supervisor, if we began it."""

    def __init__(
        self,
        job: Job,
        attempt: int,
        device_ids: tuple[str, ...],
        folder: JobFolder,
        reader: ProgressReader,
        launcher: subprocess.Popen[bytes] | None,
    ) -> None:
        self.job = job
        self.attempt = attempt
        self.device_ids = device_ids
        self._job_folder = folder
        self._folder = folder.attempt(attempt)
        self._reader = reader
        self._launcher = launcher
        self._leaving: Leaving = ""
        self._answer_by_s = 0.0
        self._start_told = False
        self._reader_failed = False
        self.supervisor_pid = 0

    def ask_to_leave(self, leaving: Leaving) -> None:
        """Write the stop flag and wake the supervisor. Asking again may turn a preemption into a stop."""
        self._leaving = leaving
        if not self._answer_by_s:
            self._answer_by_s = time.monotonic() + self.job.grace_ns / NS_PER_S + _ANSWER_S
        try:
            write_json(self._folder.stop, {"for_good": leaving == "stop"})
        except OSError as error:  # a full disk: the signal alone must do
            logger.warning("job %s: cannot write its stop flag: %s", self.job.job_id, error)
        self._signal_supervisor(signal.SIGTERM)

    def observe(self, now_ns: int) -> list[Event]:
        """What has happened since the last call. A `JobExited` is always the last event of an attempt."""
        if self._launcher is not None and self._launcher.poll() is not None:
            self._launcher = None  # collected: no zombie for as long as the job runs
        # In this order: the lock is held from before the claim until after the exit record is written.
        claimed = self._folder.started.exists()
        alive = self._folder.is_supervised()
        record = read_json(self._folder.exit)
        events: list[Event] = []
        if not self._start_told and (pid := read_pid(self._folder)) is not None:
            self._start_told, self.supervisor_pid = True, pid["supervisor_pid"]
            events.append(JobStarted(self.job.job_id, self.attempt))
        if record is not None and not alive:  # it lies there while the supervisor lives? then the job has put it there
            if record.get("asked") == "terminated" and self._leaving:
                record["asked"] = self._leaving
            events += self._reports(now_ns, ended=True)
            try:
                end = self._exited(*outcome_of(record, self.job.total_steps, self._reader.newest_step))
            except (KeyError, TypeError, AttributeError):  # the folder is the job's to spoil, its devices are not
                end = self._gone("its exit record has been overwritten")
            return [*events, end]
        if alive:
            self._kill_stuck_supervisor()
            return events + self._reports(now_ns, ended=False)
        if claimed:
            if not kill_leftovers(self._job_folder, self.attempt):
                return events  # not all are gone yet: its devices are not free
            events += self._reports(now_ns, ended=True)
            return [*events, self._gone("its supervisor died; what was left of the job has been killed")]
        if self._launcher is not None:
            return events
        with contextlib.suppress(OSError):  # on a full disk nobody else can claim it either
            if not self._folder.claim():
                return events
        return [*events, self._gone(f"its supervisor could not start: {self._supervisor_words()}")]

    def release(self) -> None:
        """We look no more; the attempt goes on. Collects the launcher, which ends within moments."""
        if self._launcher is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._launcher.wait(15)

    def _reports(self, now_ns: int, ended: bool) -> list[Event]:
        skipped = self._reader.skipped
        events: list[Event] = []
        while batch := self._poll(now_ns, ended):
            events.append(ProgressReported(batch))
            if not ended:
                break  # one batch a look: a flood of reports must not keep us from the other jobs
        if self._reader.skipped > skipped:
            logger.warning("job %s: skipped %d malformed reports", self.job.job_id, self._reader.skipped - skipped)
        return events

    def _poll(self, now_ns: int, ended: bool) -> tuple[Report, ...]:
        """Whatever happens while reports are read, the end of the attempt must come through."""
        try:
            return self._reader.poll(now_ns, ended)
        except Exception:
            if not self._reader_failed:
                self._reader_failed = True
                logger.exception("job %s: its progress cannot be read", self.job.job_id)
            return ()

    def _exited(self, outcome: Outcome, reason: str, exit_code: int | None) -> JobExited:
        return JobExited(self.job.job_id, self.attempt, outcome, reason, exit_code)

    def _gone(self, reason: str) -> JobExited:
        """An end without a record: what was asked for has come true, else the attempt is lost."""
        outcomes: dict[Leaving, Outcome] = {"": "lost", "preempt": "preempted", "stop": "stopped"}
        return self._exited(outcomes[self._leaving], reason, None)

    def _signal_supervisor(self, number: signal.Signals) -> None:
        signal_supervisor(self._job_folder, self.attempt, number)

    def _kill_stuck_supervisor(self) -> None:
        if self._answer_by_s and time.monotonic() > self._answer_by_s:
            logger.error("job %s: its supervisor does not answer and is killed", self.job.job_id)
            self._signal_supervisor(signal.SIGKILL)

    def _supervisor_words(self) -> str:
        try:
            lines = self._folder.supervisor_log.read_text(errors="replace").strip().splitlines()
        except OSError as error:
            return str(error)
        return lines[-1] if lines else "no reason given"


def signal_supervisor(folder: JobFolder, attempt: int, number: signal.Signals) -> None:
    """Signal the supervisor if it lives; the recorded start time tells it from a process that got its pid later."""
    ours = folder.attempt(attempt)
    pid = read_pid(ours)
    if pid is None or pid["boot_id"] != boot_id() or not ours.is_supervised():
        return
    if start_ticks(pid["supervisor_pid"]) == pid["supervisor_ticks"]:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid["supervisor_pid"], number)


def kill_leftovers(folder: JobFolder, attempt: int) -> bool:
    """SIGKILL to what a dead supervisor left behind; True when nothing (more) is found.

    Found by its cgroup, as a descendant of the job's main process, or by the environment it was started with. Where no
    cgroup could be made, a process that both cleared its environment and left its parents cannot be told from others.
    """
    found = with_environment(marks(folder.path.name, attempt, folder))
    pid = read_pid(folder.attempt(attempt))
    group = None
    if pid is not None and pid["boot_id"] == boot_id():
        ticks = start_ticks(pid["pid"])
        if ticks is not None and ticks == pid.get("pid_ticks"):  # one that ended at once was recorded without
            found |= {pid["pid"], *descendants(pid["pid"])}
        if pid["cgroup"]:
            group = Path(pid["cgroup"])
            found |= cgroup.pids(group)
            cgroup.kill(group)
    kill_all(found)
    if found:
        return False
    if group is not None:
        cgroup.remove(group)
    return True
