"""The folder in which a job lives on disk: the meeting point of daemon, supervisor and training script.

::

    ROOT/jobs/JOB/             checkpoints/  reports.jsonl  log  log.1 (the older half, once the log was rotated)
    ROOT/jobs/JOB/attempt-N/   spec.json   what to run, written by the daemon (the intent)
                               lock        flock held by the supervisor as long as it lives
                               started     made once with O_EXCL: whoever makes it decides the fate of the attempt
                               pid.json    who runs        stop      the daemon's wish that it leave
                               exit.json   how it ended    supervisor.log  what the supervisor itself had to say

Standard library only, since the supervisor imports it without site-packages. Files are written whole (temporary file,
rename), so a reader sees all or nothing.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

EXIT_RECORD_BYTES = 8192
"""Room set aside for exit.json before the job starts, so that a disk filled by the job cannot swallow its end."""
MAX_RECORD_BYTES = 64 << 20
_PID_RECORD = {"supervisor_pid": int, "supervisor_ticks": int, "pid": int, "boot_id": str, "cgroup": str}


class AttemptFolder:
    """Paths of one attempt, and the few questions that are asked of them."""

    __slots__ = ("exit", "exit_room", "lock", "path", "pid", "spec", "started", "stop", "supervisor_log")

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spec = path / "spec.json"
        self.lock = path / "lock"
        self.started = path / "started"
        self.pid = path / "pid.json"
        self.stop = path / "stop"
        self.exit = path / "exit.json"
        self.exit_room = path / "exit.room"
        self.supervisor_log = path / "supervisor.log"

    def claim(self) -> bool:
        """True for exactly one caller ever, in any process: it starts the attempt, or decides that it never runs."""
        try:
            descriptor = os.open(self.started, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            return False
        os.close(descriptor)
        return True

    def is_supervised(self) -> bool:
        """True while a supervisor lives. A lock, unlike a recorded pid, cannot be mistaken for another process."""
        try:
            descriptor = os.open(self.lock, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


class JobFolder:
    """Paths of one job under the state folder `root`. Raises `ValueError` for an id that would leave the folder."""

    __slots__ = ("checkpoints", "log", "path", "reports")

    def __init__(self, root: Path, job_id: str) -> None:
        if not job_id or job_id in (".", "..") or "/" in job_id or "\0" in job_id:
            raise ValueError(f"job id {job_id!r} cannot name a folder; letters, digits, '.', '_' and '-' are allowed.")
        self.path = root / "jobs" / job_id
        self.checkpoints = self.path / "checkpoints"
        self.reports = self.path / "reports.jsonl"
        self.log = self.path / "log"

    def attempt(self, number: int) -> AttemptFolder:
        return AttemptFolder(self.path / f"attempt-{number}")


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Replace `path` by `record`, whole and durable. Raises `OSError`; then the old content stands."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise


def read_json(path: Path) -> dict[str, Any] | None:
    """The record in `path`; None when there is none, or none that can be read."""
    try:
        with open_plain(path) as file:
            record = json.loads(file.read(MAX_RECORD_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None


def read_pid(folder: AttemptFolder) -> dict[str, Any] | None:
    """The record in pid.json; None when there is none, or a job has written something else there."""
    record = read_json(folder.pid)
    if record is None or any(not isinstance(record.get(name), kind) for name, kind in _PID_RECORD.items()):
        return None
    return record


def open_plain(path: Path) -> BinaryIO:
    """Open a plain file for reading. Raises `OSError`, also for anything else that a job has put in its place: to open
    a pipe would wait for its other end, and all other jobs with us."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "no plain file", str(path))
    return open(descriptor, "rb")


def set_room_aside(folder: AttemptFolder) -> None:
    """Write the exit record's blocks beforehand. Raises `OSError` when the disk is full already."""
    with open(os.open(folder.exit_room, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(b" " * EXIT_RECORD_BYTES)
        file.flush()
        os.fsync(file.fileno())


def write_exit(folder: AttemptFolder, record: dict[str, Any]) -> None:
    """Put the exit record into its room and name it. Needs no free space, except on copy-on-write file systems."""
    content = json.dumps(record).encode()
    if len(content) > EXIT_RECORD_BYTES:
        content = json.dumps({**record, "tail": "", "last_line": record["last_line"][:100]}).encode()
    with open(folder.exit_room, "r+b") as file:
        file.write(content.ljust(EXIT_RECORD_BYTES))
        file.flush()
        os.fsync(file.fileno())
    os.replace(folder.exit_room, folder.exit)
