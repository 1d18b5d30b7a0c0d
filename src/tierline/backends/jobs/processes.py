"""What /proc tells about processes, and how to end them all. Standard library only; the supervisor uses it too.

A pid alone is never trusted: it is compared with the start time in /proc/PID/stat, or with the environment that the
job was given (which its children inherit, wherever they hide), so that a reused pid is not hit.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path


def _stat_fields(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the third (state) on; the name before may hold blanks and brackets."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes().decode(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is none (or only its zombie)."""
    fields = _stat_fields(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def boot_id() -> str:
    """Names this boot of the machine: pids and start times of another boot mean nothing."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def all_pids() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def descendants(root: int) -> set[int]:
    """Pids of all living children, grandchildren and so on of `root` (zombies too: their children are reparented)."""
    children: dict[int, list[int]] = {}
    for pid in all_pids():
        fields = _stat_fields(pid)
        if fields is not None:
            children.setdefault(int(fields[1]), []).append(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def environment(pid: int) -> frozenset[bytes]:
    """The `NAME=value` entries that the process was started with. Empty for processes of others, and for zombies."""
    try:
        return frozenset(Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
    except OSError:
        return frozenset()


def with_environment(wanted: Iterable[bytes]) -> set[int]:
    """Living processes that carry all entries of `wanted` in their environment."""
    entries = tuple(wanted)
    return {pid for pid in all_pids() if environment(pid).issuperset(entries)}


def ancestors(pid: int) -> list[int]:
    """Parent, grandparent and so on, as far as /proc shows them."""
    chain: list[int] = []
    while (fields := _stat_fields(pid)) is not None and (pid := int(fields[1])) > 0 and pid not in chain:
        chain.append(pid)
    return chain


def kill_all(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, signal.SIGKILL)
