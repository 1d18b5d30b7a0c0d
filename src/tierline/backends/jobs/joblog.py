"""Writes what a job prints, and never more than it may: the log rotates, its rate is capped, its last lines are kept.

Standard library only (part of the supervisor). A full disk loses log lines, never the job.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

TAIL_BYTES = 2048
MAX_LINE_BYTES = 65_536
_LINE_END = re.compile(rb"[\r\n]")  # progress bars end their lines with \r


class JobLog:
    """Appends to `path`; at half of `cap_bytes` it becomes `path`.1 and a fresh file begins.

    More than `bytes_per_s` within a second makes `may_read` false until the second is over: the job then waits on its
    own full pipe, and a flood costs the machine no more than that rate. `on_line` gets every line without its end,
    cut off at 64 KiB.
    """

    def __init__(
        self, path: Path, cap_bytes: int, bytes_per_s: int, on_line: Callable[[bytes], None] | None = None
    ) -> None:
        self._path = path
        self._file_cap = max(cap_bytes // 2, 4096)
        self._rate = bytes_per_s
        self._on_line = on_line
        self._line = b""
        self._line_is_cut = False
        self._window_end = 0.0
        self._window_bytes = 0
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size
        self._tail = b""
        self.dropped_bytes = 0

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def may_read(self) -> bool:
        return self._window_bytes < self._rate or time.monotonic() >= self._window_end

    def seconds_until_readable(self) -> float:
        return max(0.0, self._window_end - time.monotonic())

    def write(self, chunk: bytes) -> None:
        now = time.monotonic()
        if now >= self._window_end:
            self._window_end, self._window_bytes = now + 1.0, 0
        self._window_bytes += len(chunk)
        self._tail = (self._tail + chunk)[-TAIL_BYTES:]
        try:
            if self._size >= self._file_cap:
                self._rotate()
            written = os.write(self._descriptor, chunk)
            self._size += written
            self.dropped_bytes += len(chunk) - written
        except OSError:
            self.dropped_bytes += len(chunk)
        if self._on_line is not None:
            self._split(chunk, self._on_line)

    def _rotate(self) -> None:
        with contextlib.suppress(FileNotFoundError):  # moved already when no fresh file could be made, or removed
            os.replace(self._path, self._path.with_name(self._path.name + ".1"))
        full, self._descriptor = self._descriptor, self._open()
        os.close(full)
        self._size = 0

    def _split(self, chunk: bytes, on_line: Callable[[bytes], None]) -> None:
        *lines, rest = _LINE_END.split(self._line + chunk)
        for line in lines:
            if line and not self._line_is_cut:
                on_line(line[:MAX_LINE_BYTES])
            self._line_is_cut = False
        if len(rest) > MAX_LINE_BYTES:  # no end in sight: use its beginning, skip the rest of it
            if not self._line_is_cut:
                on_line(rest[:MAX_LINE_BYTES])
            self._line_is_cut, rest = True, b""
        self._line = rest

    def finish(self) -> None:
        """The job has ended: a last line without its end counts too."""
        if self._on_line is not None and self._line and not self._line_is_cut:
            self._on_line(self._line)
        self._line = b""

    def tail(self) -> str:
        """The newest 2 KiB that the job printed in this attempt."""
        return self._tail.decode(errors="replace")

    def last_line(self) -> str:
        lines = [line.strip() for line in re.split(r"[\r\n]", self.tail())]
        return next((line[-300:] for line in reversed(lines) if line), "")
