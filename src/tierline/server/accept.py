"""From a request to nouns: what only the machine that runs the jobs can check, before anything is recorded.

A job whose folder, program or script does not exist would fail the moment it starts, perhaps hours later; it is refused
at once, as a shell would have refused it.
"""

from __future__ import annotations

import math
import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

from tierline.backends.jobs.progress import check_progress
from tierline.core.errors import InvalidInput, Refused
from tierline.core.nouns import NS_PER_S, Job, Metric, Progress, Sweep
from tierline.server.auth import Principal
from tierline.server.schemas import JobRequest, SweepRequest

_PYTHON = re.compile(r"(python|pypy)[0-9.]*(t|d|-dbg)?")
_PYTHON_OPTIONS_WITH_VALUE = frozenset({"-W", "-X", "--check-hash-based-pycs"})
_SHELLS = frozenset({"sh", "bash", "dash", "zsh", "ksh"})


def job_of(request: JobRequest, job_id: str, who: Principal) -> Job:
    """The job as the scheduler takes it. Raises `InvalidInput` or `Refused` with one sentence."""
    user = request.user or who.user
    if user != who.user and not who.admin:
        raise Refused(
            f"job '{job_id}' is submitted for user '{user}' by '{who.user}': only an administrator may do so."
        )
    if request.priority > 0 and not who.admin:
        raise Refused(f"job '{job_id}' asks for priority {request.priority}: above 0 only an administrator may ask.")
    _check_text(request, job_id)
    env = tuple(sorted(request.env.items()))
    # One number given alone means exactly so many.
    max_gpus = request.max_gpus if "max_gpus" in request.model_fields_set else request.min_gpus
    job = Job(
        job_id=job_id,
        user=user,
        argv=_program(tuple(request.argv), Path(request.cwd), request.env.get("PATH"), job_id),
        env=env,
        cwd=request.cwd,
        sweep=request.sweep,
        kind=request.kind,
        min_gpus=request.min_gpus,
        max_gpus=max_gpus,
        gpu_types=tuple(request.gpu_types),
        gpu_memory_bytes=request.gpu_memory_bytes,
        metric=Metric(request.metric, request.direction),
        progress=Progress(request.progress, request.pattern),
        total_steps=request.total_steps,
        deadline_ns=round(request.deadline_s * NS_PER_S),
        priority=request.priority,
        after=tuple(request.after),
        held=request.held,
        preemptible=request.preemptible,
        grace_ns=round(request.grace_s * NS_PER_S),
        max_restarts=request.max_restarts,
        speedup=tuple(request.speedup),
        type_speed=tuple(sorted(request.type_speed.items())),
        params=tuple(request.params.items()),
        job_type=request.job_type,
        sm_util=request.sm_util,
        bw_util=request.bw_util,
        shareable=request.shareable and max_gpus == 1,  # a job has one arbiter, which is that of one device
    )
    check_progress(job)
    return job


def sweep_of(request: SweepRequest, who: Principal) -> Sweep:
    """The sweep with its levels as losses: those of a `max` metric change their sign."""
    sign = -1.0 if request.direction == "max" else 1.0
    chance, target = (None if level is None else sign * level + 0.0 for level in (request.chance, request.target))
    return Sweep(request.sweep_id, who.user, Metric(request.metric, request.direction), chance, target)


def known_sweep(sweep: Sweep, known: list[Sweep], who: Principal) -> Sweep:
    """The same sweep under its declarer's name when it exists; raises `Refused` when it is another user's."""
    for other in known:
        if other.sweep_id == sweep.sweep_id:
            if other.user != who.user and not who.admin:
                raise Refused(f"sweep '{sweep.sweep_id}' belongs to user '{other.user}'; choose another id.")
            return replace(sweep, user=other.user)
    return sweep


def _check_text(request: JobRequest, job_id: str) -> None:
    for name, value in request.env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise InvalidInput(
                f"job '{job_id}': '{name[:80]}' is no environment variable; '=' and NUL are not allowed."
            )
    if any("\0" in word for word in (*request.argv, request.cwd)):
        raise InvalidInput(f"job '{job_id}': a NUL character is in its command or folder; no program can be given one.")
    try:
        for word in (*request.argv, request.cwd, *request.env, *request.env.values()):
            os.fsencode(word)
    except UnicodeEncodeError as error:
        raise InvalidInput(
            f"job '{job_id}': its command, folder or environment is no proper text ({error})."
        ) from error


def _program(argv: tuple[str, ...], cwd: Path, path: str | None, job_id: str) -> tuple[str, ...]:
    if not cwd.is_absolute():
        raise InvalidInput(f"job '{job_id}': its folder '{cwd}' must be an absolute path.")
    if not cwd.is_dir():
        raise InvalidInput(f"job '{job_id}': its folder '{cwd}' does not exist on this machine.")
    name = argv[0]
    if "/" in name:
        found = _is_program(cwd / name)
    else:
        search = path if path is not None else os.environ.get("PATH", os.defpath)
        absolute = os.pathsep.join(str(cwd / entry) for entry in search.split(os.pathsep))
        found = bool(name) and shutil.which(name, path=absolute) is not None
        if not found and name and _is_program(cwd / name):
            argv, found = (f"./{name}", *argv[1:]), True
    if not found:
        what = "exists but may not be executed" if (cwd / name).is_file() else "is not on PATH and not in its folder"
        if "/" in name and not (cwd / name).exists():
            what = "does not exist"
        raise InvalidInput(f"job '{job_id}': the program '{name}' {what} (folder '{cwd}').")
    script = _script(argv)
    if script is not None and not (cwd / script).exists():
        raise InvalidInput(f"job '{job_id}': the script '{script}' does not exist (folder '{cwd}').")
    return argv


def _is_program(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def _script(argv: tuple[str, ...]) -> str | None:
    """The file that an interpreter is told to read; None when there is none to be seen."""
    interpreter = os.path.basename(argv[0])
    if interpreter in _SHELLS:
        return argv[1] if len(argv) > 1 and not argv[1].startswith("-") else None
    if not _PYTHON.fullmatch(interpreter):
        return None
    words = iter(argv[1:])
    for word in words:
        if word in _PYTHON_OPTIONS_WITH_VALUE:
            next(words, None)
        elif word == "-" or (word.startswith("-") and not word.startswith("--") and set("cm") & set(word[1:])):
            return None  # standard input, a command or a module
        elif not word.startswith("-"):
            return word
    return None


def share_pairs(shares: dict[str, float]) -> tuple[tuple[str, float], ...]:
    for name, share in shares.items():
        if not name or not math.isfinite(share):
            raise InvalidInput(f"share of '{name}' is {share:g}; a name and a finite number above 0 are needed.")
    return tuple(sorted(shares.items()))
