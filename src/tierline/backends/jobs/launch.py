"""Turns a job and its devices into an attempt folder and a supervisor."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tierline.backends.jobs import supervisor
from tierline.backends.jobs.devices import device_indices
from tierline.backends.jobs.rundir import AttemptFolder, JobFolder, write_json
from tierline.backends.jobs.sharing import DeviceSharing
from tierline.core.nouns import NS_PER_S, Job

LOG_CAP_BYTES = 64 << 20
LOG_BYTES_PER_S = 16 << 20


def job_environment(
    job: Job, attempt: int, resume: bool, device_ids: tuple[str, ...], folder: JobFolder, base: Mapping[str, str]
) -> dict[str, str]:
    """What the job sees: `base` (the daemon's environment) without any TIERLINE_ name, its own `env`, our contract.

    Devices are not the job's to choose: CUDA_VISIBLE_DEVICES is always ours, empty for CPU slots, counted as NVML does.
    """
    env = {name: value for name, value in base.items() if not name.startswith("TIERLINE_")}
    env.setdefault("PYTHONUNBUFFERED", "1")
    env.update(job.env)
    indices, are_gpus = device_indices(device_ids)
    env.update(
        TIERLINE_JOB_ID=job.job_id,
        TIERLINE_ATTEMPT=str(attempt),
        TIERLINE_REPORT_FILE=str(folder.reports),
        TIERLINE_CHECKPOINT_DIR=str(folder.checkpoints),
        TIERLINE_GPUS=",".join(indices),
        CUDA_VISIBLE_DEVICES=",".join(indices) if are_gpus else "",
        CUDA_DEVICE_ORDER="PCI_BUS_ID",
    )
    if resume:
        env["TIERLINE_RESUME"] = "1"
    else:
        env.pop("TIERLINE_RESUME", None)
    return env


def marks(job_id: str, attempt: int, folder: JobFolder) -> tuple[bytes, ...]:
    """Environment entries by which a process of this attempt is known for certain, wherever it hides."""
    return (
        os.fsencode(f"TIERLINE_JOB_ID={job_id}"),
        os.fsencode(f"TIERLINE_ATTEMPT={attempt}"),
        os.fsencode(f"TIERLINE_REPORT_FILE={folder.reports}"),
    )


def write_intent(
    job: Job,
    attempt: int,
    resume: bool,
    device_ids: tuple[str, ...],
    folder: JobFolder,
    report_offset: int,
    log_cap_bytes: int,
    sharing: DeviceSharing | None = None,
    is_guest: bool = False,
) -> None:
    """Make the folders and spec.json, durable on return. With `sharing` the job runs under the interposer. Raises
    `OSError`, and `TierlineError` when the interposer cannot be had."""
    env = job_environment(job, attempt, resume, device_ids, folder, os.environ)
    if sharing is not None:
        env |= sharing.environment(job, device_ids, is_guest, env)
    ours = folder.attempt(attempt)
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.checkpoints.mkdir(exist_ok=True)
    ours.path.mkdir(exist_ok=True)
    spec = {
        "job_id": job.job_id,
        "attempt": attempt,
        "argv": list(job.argv),
        "env": env,
        "cwd": job.cwd or str(folder.path),
        "grace_s": job.grace_ns / NS_PER_S,
        "log": str(folder.log),
        "log_cap_bytes": log_cap_bytes,
        "log_bytes_per_s": LOG_BYTES_PER_S,
        "reports": str(folder.reports),
        "progress": {
            "kind": job.progress.kind,
            "pattern": job.progress.pattern or (job.metric.name if job.progress.kind == "jsonl" else ""),
        },
        "cgroup": _group_name(job.job_id, attempt, ours.path),
        "report_offset": report_offset,
    }
    write_json(ours.spec, spec)


def start_supervisor(folder: AttemptFolder) -> subprocess.Popen[bytes]:
    """Start it apart from us: own session, and it forks once more, so it is nobody's child to reap.

    The process returned ends as soon as the fate of the attempt is on disk: with code 0 either this supervisor or an
    earlier one has claimed it. Raises `OSError`.
    """
    with open(folder.supervisor_log, "ab") as log:
        return subprocess.Popen(
            [sys.executable, "-I", "-S", str(Path(supervisor.__file__).resolve()), str(folder.path)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            env={"LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )


def _group_name(job_id: str, attempt: int, path: Path) -> str:
    key = hashlib.blake2b(os.fsencode(path), digest_size=4).hexdigest()  # two daemons may have a job of the same id
    return f"{job_id}-{attempt}-{key}"
