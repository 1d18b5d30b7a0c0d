"""Backends of the job tier, by name. The one registration point: CLI choices and contract tests come from here."""

from __future__ import annotations

from typing import Final

JOB_BACKENDS: Final[dict[str, str]] = {
    "sim": "tierline.backends.jobs.sim:SimBackend",
    "local": "tierline.backends.jobs.local:LocalBackend",
}
