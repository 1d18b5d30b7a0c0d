"""Reading what a job printed, while it is printing and while its log rotates (`log` becomes `log.1`).

A mark is an integer that says where reading goes on: the file's inode number in the upper bits, the byte in it in the
lower 40. It stays true when the file is renamed by a rotation, and needs no memory in the daemon, so that following a
log survives a restart. A small number (inode 0) counts bytes from the oldest output kept; a negative one from the end.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tierline.backends.jobs.rundir import open_plain

_POSITION_BITS = 40
_TRIES = 20  # rotations in a row are not that fast: after so many the job itself has made a mess of its folder
_POSITION = (1 << _POSITION_BITS) - 1


@dataclass(frozen=True, slots=True)
class Chunk:
    """`data` and the mark behind it. `gap`: output was rotated away between the mark given and `data`. `at_end`:
    nothing more had been written when it was read."""

    data: bytes
    next_mark: int
    gap: bool
    at_end: bool


def read_log(path: Path, mark: int, limit_bytes: int) -> Chunk:
    """Up to `limit_bytes` from `mark` on. A log that does not exist yet is an empty one."""
    with _parts(path) as parts:
        if not parts:
            return Chunk(b"", mark, False, True)
        index, position, gap = _find(parts, mark)
        data = b""
        while True:
            part = parts[index]
            part.file.seek(position)
            piece = part.file.read(limit_bytes - len(data))
            data += piece
            position += len(piece)
            if len(data) >= limit_bytes or index + 1 == len(parts):
                at_end = index + 1 == len(parts) and len(data) < limit_bytes
                return Chunk(data, part.inode << _POSITION_BITS | position, gap, at_end)
            index, position = index + 1, 0


@dataclass(frozen=True, slots=True)
class _Part:
    file: BinaryIO
    inode: int
    size: int


@contextmanager
def _parts(path: Path) -> Iterator[list[_Part]]:
    """The older half and the newer one, as far as they exist, opened without a rotation in between."""
    names = (path.with_name(path.name + ".1"), path)
    for tries_left in reversed(range(_TRIES)):
        with ExitStack() as stack:
            parts: list[_Part] = []
            for name in names:
                try:
                    file = stack.enter_context(open_plain(name))
                except OSError:  # not there, or the job has put something else there
                    continue
                status = os.fstat(file.fileno())
                parts.append(_Part(file, status.st_ino, status.st_size))
            inodes = [part.inode for part in parts]
            if not tries_left or (inodes == _inodes(names) and len(set(inodes)) == len(inodes)):
                yield parts[-1:] if len(set(inodes)) < len(inodes) else parts
                return


def _inodes(names: tuple[Path, ...]) -> list[int]:
    """Of the plain files that stand there now."""
    found = []
    for name in names:
        with contextlib.suppress(OSError):
            status = name.stat()
            if stat.S_ISREG(status.st_mode):
                found.append(status.st_ino)
    return found


def _find(parts: list[_Part], mark: int) -> tuple[int, int, bool]:
    """(part, position in it, whether output is missing before it)."""
    if mark < 0:
        mark = max(0, sum(part.size for part in parts) + mark)
    inode, position = mark >> _POSITION_BITS, mark & _POSITION
    if inode:
        for index, part in enumerate(parts):
            if part.inode == inode and position <= part.size:
                return index, position, False
        return 0, 0, True
    for index, part in enumerate(parts):
        if position < part.size or index + 1 == len(parts):
            return index, min(position, part.size), False
        position -= part.size
    return 0, 0, False
