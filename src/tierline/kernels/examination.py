"""What this machine has of what the kernel tier needs, for `tierline doctor`. Looks only, starts nothing."""

from __future__ import annotations

import ctypes
import os
import shutil
from pathlib import Path

PARAMETERS = Path("/proc/driver/nvidia/params")


def driver_version() -> str:
    """Of libcuda.so.1, as in `13.0`; "" where there is none."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return ""
    version = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(version)):
        return "of unknown version"
    return f"{version.value // 1000}.{version.value % 1000 // 10}"


def ncu() -> tuple[str, str]:
    """Path of Nsight Compute ("" where there is none), and what keeps it from the counters ("" = nothing known)."""
    found = shutil.which("ncu") or ""
    if os.geteuid() == 0:
        return found, ""
    try:
        text = PARAMETERS.read_text()
    except OSError:
        return found, ""
    if "RmProfilingAdminOnly: 1" in text:
        return found, "counters are for administrators only"
    return found, ""
