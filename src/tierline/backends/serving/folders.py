"""The folders of a running server: sockets and logs in one; transfers, and the lock that says it lives, in one that lies in
memory."""

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
SHM = "-shm"
LOCK, TRANSFERS = "lock", "transfers"
MEMORY = Path("/dev/shm")
LONGEST_BYTES = (
    107 - len("/server.sock") - len(PREFIX) - 8
)  # of the folder around ours: Linux takes no longer socket path


@dataclass(slots=True)
class RunFolders:
    """`run` and `shm`, mode 0700. The server holds a lock on a file in `shm`, which names `run`, as long as it lives; folders
    of one that was killed are removed by the next server of the same user, which finds the lock free."""

    run: Path
    shm: Path
    lock: int

    @classmethod
    def make(cls) -> RunFolders:
        """New folders, after those of dead servers are removed."""
        _clean()
        name = PREFIX + secrets.token_hex(4)
        run, shm = _temporary() / name, _memory() / f"{name}{SHM}"
        shm.mkdir(mode=0o700)
        new = shm / f"{LOCK}.new"
        lock = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        fcntl.flock(lock, fcntl.LOCK_EX)
        os.write(lock, os.fsencode(run))
        new.rename(shm / LOCK)  # it is never there without being held, as long as we live
        run.mkdir(mode=0o700)
        (shm / TRANSFERS).mkdir(mode=0o700)
        return cls(run, shm / TRANSFERS, lock)

    def remove(self) -> None:
        _remove(self.run, self.shm.parent)
        os.close(self.lock)


def _temporary() -> Path:
    own = tempfile.gettempdir()
    return Path(own if len(os.fsencode(own)) < LONGEST_BYTES else "/tmp")


def _memory() -> Path:
    return MEMORY if os.access(MEMORY, os.W_OK) else Path(tempfile.gettempdir())


def _remove(run: Path, shm: Path) -> None:
    shutil.rmtree(run, ignore_errors=True)
    shutil.rmtree(shm, ignore_errors=True)


def _is_ours(path: Path) -> bool:
    seen = path.lstat()
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid()


def _clean() -> None:
    for shm in _memory().glob(f"{PREFIX}*{SHM}"):
        with contextlib.suppress(OSError):
            if not _is_ours(shm):
                continue
            lock = os.open(shm / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                run = Path(os.fsdecode(os.read(lock, 4096)))
                if run.name == shm.name.removesuffix(SHM):
                    _remove(run, shm)
            finally:
                os.close(lock)
