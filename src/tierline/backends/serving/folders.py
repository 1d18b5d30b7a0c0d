"""The folders of a running server: sockets and logs in one, transfers in the other, which lies in memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

PREFIX = "tierline-serve-"
LOCK = "lock"
MEMORY = Path("/dev/shm")


@dataclass(slots=True)
class RunFolders:
    """`run` and `shm` have one name and mode 0700. The server holds a lock on a file in `run` as long as it lives; folders
    of one that was killed are removed by the next server of the same user, which finds the lock free."""

    run: Path
    shm: Path
    lock: int

    @classmethod
    def make(cls) -> RunFolders:
        """New folders, after those of dead servers are removed."""
        _clean()
        name = PREFIX + secrets.token_hex(6)
        run, shm = Path(tempfile.gettempdir()) / name, _memory() / f"{name}-shm"
        run.mkdir(mode=0o700)
        shm.mkdir(mode=0o700)
        lock = os.open(run / f"{LOCK}.new", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        (run / f"{LOCK}.new").rename(run / LOCK)  # it is never there without being held, as long as we live
        return cls(run, shm, lock)

    def remove(self) -> None:
        _remove(self.run.name)
        os.close(self.lock)


def _memory() -> Path:
    return MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def _remove(name: str) -> None:
    shutil.rmtree(_memory() / f"{name}-shm", ignore_errors=True)
    shutil.rmtree(Path(tempfile.gettempdir()) / name, ignore_errors=True)


def _clean() -> None:
    for run in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            seen = run.lstat()
            if not stat.S_ISDIR(seen.st_mode) or seen.st_uid != os.getuid():
                continue
            lock = os.open(run / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(run.name)
            finally:
                os.close(lock)
