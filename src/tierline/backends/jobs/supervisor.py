"""One small process per attempt, started as `python -I -S supervisor.py ATTEMPT_FOLDER`; it outlives the daemon.

It holds `lock` for life, starts the job once, carries its output into the log, asks it to leave when `stop` appears
(SIGTERM to the job's process group, `grace_s`, then SIGKILL to everything), and in the end, whatever happened, leaves
no process behind and writes exit.json. It is the subreaper of the job: every orphan of the job becomes its child. If it
is killed itself, the kernel kills the job's main process with it (PR_SET_PDEATHSIG), and the daemon kills the rest.
Standard library only, one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tierline.backends.jobs.progress import LineMatcher

if __package__ in (None, ""):  # started as a file without site-packages: let our own package be found
    sys.path.append(str(Path(__file__).resolve().parents[3]))

from tierline.backends.jobs import cgroup
from tierline.backends.jobs.joblog import JobLog
from tierline.backends.jobs.processes import boot_id, descendants, kill_all, start_ticks
from tierline.backends.jobs.rundir import AttemptFolder, read_json, set_room_aside, write_exit, write_json

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LOCK_WAIT_S = 10.0
_IDLE_S = 0.5  # how soon a stop file is seen whose signal was lost
_CHUNK_BYTES = 65_536
_LAST_CHUNKS = 64
_MATCH_S = 1.0  # CPU time that a user's pattern may take on one line
_libc = ctypes.CDLL(None, use_errno=True)


def main(folder: AttemptFolder) -> int:
    """Take the lock, become the one supervisor of this attempt, and go on in the background."""
    lock = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    give_up = time.monotonic() + _LOCK_WAIT_S
    while True:  # a daemon that looks whether we live holds the lock for a moment
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if folder.started.exists() or time.monotonic() > give_up:
                return 0
            time.sleep(0.01)
    spec = read_json(folder.spec)
    if spec is None:
        print(f"cannot read {folder.spec}", file=sys.stderr)
        return 1
    set_room_aside(folder)
    if not folder.claim():
        return 0
    if os.fork():  # the lock is shared with the child: it is held without a gap
        os._exit(0)
    os.chdir("/")
    _Supervisor(folder, spec).run()
    return 0


class _TooSlow(Exception):
    """A pattern has used up its time on a line."""


class _Supervisor:
    def __init__(self, folder: AttemptFolder, spec: dict[str, Any]) -> None:
        self._folder = folder
        self._spec = spec
        self._group = cgroup.create(spec["cgroup"])
        self._log = JobLog(Path(spec["log"]), spec["log_cap_bytes"], spec["log_bytes_per_s"], self._line_reader())
        self._output = -1
        self._main_pid = 0
        self._status: int | None = None
        self._asked = ""  # "preempt", "stop", or "terminated" when somebody else than the daemon sent the signal
        self._deadline = 0.0
        self._forced = False
        self._signalled = False
        self._is_matching = False
        self._notice = b""

    def run(self) -> None:
        _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        wakeup, wakeup_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wakeup_end, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.signal(signal.SIGVTALRM, self._on_match_timeout)
        _end_torn_line(Path(self._spec["reports"]))
        error = self._start()
        if error:
            self._finish(error)
            return
        while self._status is None:
            self._wait(wakeup)
            self._reap()
            if self._status is None:
                self._enforce_leaving()
        if not self._asked and (wish := read_json(self._folder.stop)) is not None:
            # The job may have seen the wish before we did (`should_stop` looks at the same file) and left for it. To
            # run once more and end at once costs little; to take a checkpoint for the end would lose its training.
            self._asked = "stop" if wish.get("for_good") else "preempt"
        self._finish("")

    def _on_signal(self, *_: object) -> None:
        self._signalled = True

    def _on_match_timeout(self, *_: object) -> None:
        if self._is_matching:
            raise _TooSlow

    def _start(self) -> str:
        """Start the job; a sentence when that is impossible, else ""."""
        spec, us = self._spec, os.getpid()

        def in_child() -> None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != us:
                os._exit(1)
            if self._group is not None:
                with contextlib.suppress(OSError):  # then it is found among our descendants
                    cgroup.join(self._group)

        self._output, end = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._output, False)
        argv = spec["argv"]
        try:
            job = subprocess.Popen(  # this process has one thread, so preexec_fn is safe
                argv,
                stdin=subprocess.DEVNULL,
                stdout=end,
                stderr=end,
                cwd=spec["cwd"],
                env=spec["env"],
                start_new_session=True,
                preexec_fn=in_child,
            )
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            return _why_not_started(error, argv, spec["cwd"])
        finally:
            os.close(end)
        self._main_pid = job.pid
        job.returncode = 0  # reaped by us, not by subprocess
        record = {
            "supervisor_pid": us,
            "supervisor_ticks": start_ticks(us),
            "pid": job.pid,
            "pid_ticks": start_ticks(job.pid),
            "boot_id": boot_id(),
            "cgroup": str(self._group) if self._group is not None else "",
            "started_ns": time.time_ns(),
        }
        try:
            write_json(self._folder.pid, record)
        except OSError as error:  # unknown to the daemon, it would be out of anybody's control
            self._kill_everything()
            return f"cannot start: the run folder cannot be written ({error.strerror})"
        return ""

    def _wait(self, wakeup: int) -> None:
        timeout_s = _IDLE_S
        if self._asked and not self._forced:
            timeout_s = max(0.0, min(timeout_s, self._deadline - time.monotonic()))
        watched = [wakeup]
        if self._output >= 0 and self._log.may_read():
            watched.append(self._output)
        elif self._output >= 0:
            timeout_s = min(timeout_s, self._log.seconds_until_readable())
        ready, _, _ = select.select(watched, [], [], timeout_s)
        if wakeup in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(wakeup, 4096)
        if self._output in ready:
            self._read_output()

    def _read_output(self) -> bool:
        """One read of the job's output; False when there is nothing (more) to read."""
        try:
            chunk = os.read(self._output, _CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not chunk:  # the job closed its output, it may well go on
            os.close(self._output)
            self._output = -1
            return False
        self._log.write(chunk)
        if self._notice:
            self._log.write(self._notice)
            self._notice = b""
        return True

    def _reap(self) -> bool:
        """Collect what has ended; False when no child is left at all."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            if pid == self._main_pid:
                self._status = os.waitstatus_to_exitcode(status)

    def _enforce_leaving(self) -> None:
        wish = read_json(self._folder.stop)
        if wish is not None:
            self._asked = "stop" if wish.get("for_good") else "preempt"
        elif self._signalled and not self._asked:
            self._asked = "terminated"
        if self._asked and not self._deadline:
            self._deadline = time.monotonic() + self._spec["grace_s"]
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._main_pid, signal.SIGTERM)
        if self._deadline and not self._forced and time.monotonic() >= self._deadline:
            self._forced = True
            self._kill_everything()

    def _kill_everything(self) -> None:
        """SIGKILL until nothing of the job lives. All orphans are our children, so "no child" means "nothing"."""
        pause_s = 0.001
        while True:
            if self._group is not None:
                cgroup.kill(self._group)
            kill_all(descendants(os.getpid()))
            if not self._reap() and not (self._group is not None and cgroup.pids(self._group)):
                return
            time.sleep(pause_s)  # killed processes need a moment; those stuck in the kernel may need long
            pause_s = min(pause_s * 2, 0.5)

    def _finish(self, error: str) -> None:
        out_of_memory = self._group is not None and cgroup.was_out_of_memory(self._group)
        self._kill_everything()
        for _ in range(_LAST_CHUNKS):  # bounded: the pipe may have been handed to a process that is none of ours
            if self._output < 0 or not self._read_output():
                break
        self._log.finish()
        if self._group is not None:
            cgroup.remove(self._group)
        write_exit(
            self._folder,
            {
                "returncode": self._status,
                "error": error,
                "out_of_memory": out_of_memory,
                "asked": self._asked,
                "forced": self._forced,
                "last_line": self._log.last_line(),
                "tail": self._log.tail(),
                "log_dropped_bytes": self._log.dropped_bytes,
                "ended_ns": time.time_ns(),
            },
        )

    def _line_reader(self) -> Callable[[bytes], None] | None:
        """For progress that is read from stdout: every line that tells of it becomes a report with its own time."""
        progress = self._spec["progress"]
        if progress["kind"] not in ("regex", "jsonl"):
            return None
        from tierline.backends.jobs.progress import LineMatcher

        matcher: LineMatcher | None = LineMatcher(progress["kind"], progress["pattern"])
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        reports = os.open(self._spec["reports"], flags, 0o600)

        def on_line(line: bytes) -> None:
            nonlocal matcher
            if matcher is None:
                return
            try:
                record = self._match(matcher, line)
            except _TooSlow:  # it may take for ever, and until then the job would wait on its full pipe
                matcher = None
                self._notice = (
                    b"\ntierline: the progress pattern takes too long on a line; no progress is read any more\n"
                )
                return
            if record is not None:
                with contextlib.suppress(OSError):
                    os.write(reports, json.dumps({**record, "time_ns": time.time_ns()}).encode() + b"\n")

        return on_line

    def _match(self, matcher: LineMatcher, line: bytes) -> dict[str, Any] | None:
        """Raises `_TooSlow` when the pattern backtracks without end; the regex engine lets signals through."""
        self._is_matching = True
        signal.setitimer(signal.ITIMER_VIRTUAL, _MATCH_S)
        try:
            return matcher.match(line)
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0.0)
            self._is_matching = False


def _end_torn_line(reports: Path) -> None:
    """An earlier attempt may have died within a line; ours must not be glued to it."""
    with contextlib.suppress(OSError), open(reports, "rb+") as file:
        if file.seek(0, os.SEEK_END) > 0:
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")


def _why_not_started(error: Exception, argv: list[str], cwd: str) -> str:
    if not isinstance(error, OSError):
        return f"cannot start: {error}"
    if not os.path.isdir(cwd):
        return f"cannot start: no such folder '{cwd}'"
    if isinstance(error, FileNotFoundError):
        return f"cannot start: no such program '{argv[0]}'"
    if isinstance(error, PermissionError):
        return f"cannot start: '{argv[0]}' may not be executed"
    return f"cannot start: '{argv[0]}': {error.strerror}"


if __name__ == "__main__":
    sys.exit(main(AttemptFolder(Path(sys.argv[1]))))
