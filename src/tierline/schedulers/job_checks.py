"""What users may ask of the job tier. Checked before anything is recorded, so that a refusal leaves nothing behind."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from tierline.core.errors import InvalidInput, NotFound
from tierline.core.nouns import Job, Phase, Sweep
from tierline.schedulers.job_record import JobRecord, find_record
from tierline.schedulers.placement import DevicePool

_JOB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def check_job(job: Job, known: Mapping[str, JobRecord], new_ids: set[str], pool: DevicePool) -> None:
    """Raises `InvalidInput` with one sentence when the job cannot be accepted."""
    name = f"job '{job.job_id}'"
    if not _JOB_ID.fullmatch(job.job_id):
        raise InvalidInput(
            f"job id '{job.job_id[:80]}' is not allowed: 1 to 64 letters, digits, '.', '_' or '-', "
            "starting with a letter or digit."
        )
    if job.job_id in known or job.job_id in new_ids:
        raise InvalidInput(f"{name} exists already; choose another id or leave it out.")
    if not 1 <= job.min_gpus <= job.max_gpus:
        raise InvalidInput(f"{name} asks for {job.min_gpus}..{job.max_gpus} GPUs; allowed is 1 <= min <= max.")
    for value, what in ((job.total_steps, "steps"), (job.grace_ns, "grace"), (job.max_restarts, "restarts")):
        if value < 0:
            raise InvalidInput(f"{name}: {what} is {value}; it must be 0 or more.")
    if not -100 <= job.priority <= 100:
        raise InvalidInput(f"{name}: priority is {job.priority}; allowed is -100 to 100.")
    if any(gpus < 1 or not math.isfinite(speed) or speed <= 0 for gpus, speed in job.speedup):
        raise InvalidInput(f"{name}: measured speeds must be above 0 at 1 or more GPUs.")
    for dependency in job.after:
        if dependency not in known and dependency not in new_ids:
            raise NotFound(f"{name} waits for job '{dependency}', which does not exist.")
    _check_fits(job, pool)


def _check_fits(job: Job, pool: DevicePool) -> None:
    types = pool.gpu_types
    unknown = [t for t in job.gpu_types if t not in types]
    if unknown:
        raise InvalidInput(
            f"job '{job.job_id}' asks for GPU type '{unknown[0]}'; this cluster has: {', '.join(types) or 'none'}."
        )
    enough = [t for t in types if pool.suits(job, t)]
    if types and not enough:  # the types asked for are there, so it is memory
        most = max(pool.memory_bytes(t) for t in job.gpu_types or types)
        raise InvalidInput(
            f"job '{job.job_id}' asks for {job.gpu_memory_bytes} bytes of GPU memory; the largest device has {most}."
        )
    most_gpus = max((pool.installed(t) for t in enough), default=0)
    if job.min_gpus > most_gpus:
        raise InvalidInput(
            f"job '{job.job_id}' asks for {job.min_gpus} GPUs; this cluster has {most_gpus} that it may use."
        )


def check_sweep(sweep: Sweep, known: Mapping[str, Sweep]) -> None:
    if not _JOB_ID.fullmatch(sweep.sweep_id):
        raise InvalidInput(
            f"sweep id '{sweep.sweep_id[:80]}' is not allowed: 1 to 64 letters, digits, '.', '_' or '-'."
        )
    before = known.get(sweep.sweep_id)
    if before is not None and before != sweep:
        raise InvalidInput(f"sweep '{sweep.sweep_id}' exists already with other settings; choose another id.")
    levels = [level for level in (sweep.chance, sweep.target) if level is not None]
    if not all(map(math.isfinite, levels)):
        raise InvalidInput(f"sweep '{sweep.sweep_id}': chance and target must be finite numbers.")
    if len(levels) == 2 and levels[1] >= levels[0]:
        raise InvalidInput(
            f"sweep '{sweep.sweep_id}': the target loss {levels[1]:g} must lie below the chance level {levels[0]:g}."
        )


def check_shares(shares: tuple[tuple[str, float], ...]) -> None:
    for name, share in shares:
        if not (math.isfinite(share) and share > 0):
            raise InvalidInput(f"share of '{name}' is {share:g}; it must be a finite number above 0.")


def live_record(job_id: str, known: Mapping[str, JobRecord]) -> JobRecord:
    """The record of a job that has not ended; raises `NotFound` or `InvalidInput`."""
    record = find_record(job_id, known)
    if record.phase.is_terminal:
        raise InvalidInput(f"job '{job_id}' has ended already ({record.phase.name.lower()}).")
    return record


def check_release(job_id: str, known: Mapping[str, JobRecord]) -> None:
    record = live_record(job_id, known)
    if record.phase is not Phase.HELD and record.leaving != "hold":
        raise InvalidInput(f"job '{job_id}' is not held ({record.phase.name.lower()}).")
