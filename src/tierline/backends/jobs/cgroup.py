"""A cgroup (v2) per attempt where one can be made: then nothing of a job can hide. Standard library only.

It is looked for in the unified hierarchy (/sys/fs/cgroup, or /sys/fs/cgroup/unified beside a v1 one), below the group
that this process is in. Where none can be made (no rights, no v2), `create` answers None and descendants are walked.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from tierline.backends.jobs.processes import kill_all

_MOUNTS = (Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified"))


def _own_group() -> Path | None:
    mount = next((mount for mount in _MOUNTS if (mount / "cgroup.controllers").exists()), None)
    if mount is None:
        return None
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return mount / own.lstrip("/")


def create(name: str) -> Path | None:
    """Make the group `tierline/NAME` below our own; None where that is not to be had."""
    own = _own_group()
    if own is None or "/" in name:
        return None
    group = own / "tierline" / name
    try:
        group.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return group if os.access(group / "cgroup.procs", os.W_OK) else None


def join(group: Path) -> None:
    """Move the calling process in. Raises `OSError`."""
    descriptor = os.open(group / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, b"0")
    finally:
        os.close(descriptor)


def pids(group: Path) -> set[int]:
    """All processes of the group and its subgroups; empty when the group is gone."""
    found: set[int] = set()
    for folder, _, _ in os.walk(group):
        with contextlib.suppress(OSError):
            found.update(int(line) for line in Path(folder, "cgroup.procs").read_text().split())
    return found


def kill(group: Path) -> None:
    """SIGKILL to everything in it: at once where the kernel can (5.14), else pid by pid."""
    try:
        (group / "cgroup.kill").write_text("1")
    except OSError:
        kill_all(pids(group))


def was_out_of_memory(group: Path) -> bool:
    """True when the kernel killed something in the group for want of memory (needs the memory controller)."""
    try:
        lines = (group / "memory.events").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in lines)


def remove(group: Path) -> None:
    """Remove the emptied group with the subgroups that the job may have made; a group in use stays."""
    for folder, _, _ in os.walk(group, topdown=False):
        with contextlib.suppress(OSError):
            os.rmdir(folder)
