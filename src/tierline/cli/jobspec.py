"""From what a user typed to a `JobRequest`. Each function raises `InvalidInput`: what was given, what is allowed."""

from __future__ import annotations

import datetime
import math
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from tierline.core.errors import InvalidInput, UnknownName
from tierline.core.nouns import Direction, JobKind, ProgressKind

if TYPE_CHECKING:
    from tierline.cli.client import JobRequest, SweepRequest

DEFAULT_GRACE = "30s"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)
_TIME = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?")
_TIME_UNIT_S = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, None: 1.0}
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_PYTHON = re.compile(r"python(\d+(\.\d+)?)?")
# What the daemon takes (a test compares them with its schema); told here in the words of the option.
MAX_GPUS = 1_000_000
MAX_STEPS = 2**63 - 1
MAX_BYTES = 2**63 - 1
MAX_RESTARTS = 1_000_000
MAX_GRACE_S = 86_400.0
MAX_DEADLINE_S = 9e9
PRIORITIES = (-100, 100)


def within(option: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise InvalidInput(f"{option} {value}: from {low} to {high} is allowed.")


def identifier(option: str, text: str) -> str:
    """`text` where it can name a job, sweep or user; "" stays "", for then it was not given."""
    if text and not _ID.fullmatch(text):
        raise InvalidInput(
            f"{option} '{text[:80]}' is no name: 1 to 64 letters, digits, '.', '_' or '-' are allowed, "
            "starting with a letter or digit."
        )
    return text


def gpus(text: str) -> tuple[int, int]:
    """(min, max) of `2` or `1..4`."""
    match = re.fullmatch(r"(\d+)(?:\.\.(\d+))?", text.strip())
    low = int(match[1]) if match else 0
    high = int(match[2]) if match and match[2] else low
    if not 1 <= low <= high:
        raise InvalidInput(f"--gpus '{text}' is no number of GPUs: write 2, or 1..4 for a job that can use 1 to 4.")
    within("--gpus", high, 1, MAX_GPUS)
    return low, high


def bytes_of(text: str) -> int:
    """Bytes of `24G`, `512MiB`, `1000`; the units are binary. "" = 0."""
    if not text:
        return 0
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise InvalidInput(f"--gpu-memory '{text}' is no size: write a number with K, M, G or T, as in 24G.")
    count = int(float(match[1]) * 1024 ** " KMGT".index(match[2].upper() or " "))
    if count > MAX_BYTES:
        raise InvalidInput(f"--gpu-memory '{text}' is more than any device has.")
    return count


def seconds_of(option: str, text: str) -> float:
    """Seconds of `30`, `30s`, `1.5h`, `2d`."""
    match = _TIME.fullmatch(text.strip())
    if not match:
        raise InvalidInput(f"{option} '{text}' is no time: write a number with ms, s, m, h or d, as in 30s or 2h.")
    return float(match[1]) * _TIME_UNIT_S[match[2]]


def deadline(text: str, now_s: float) -> float:
    """Unix time of a deadline, 0.0 = none."""
    if not text:
        return 0.0
    if _TIME.fullmatch(text.strip()):
        at_s = now_s + seconds_of("--deadline", text)
    else:
        try:
            at_s = datetime.datetime.fromisoformat(text).timestamp()
        except (ValueError, OverflowError):
            raise InvalidInput(f"--deadline '{text}' is no time: write 2h, or 2030-05-01T18:00.") from None
    if at_s > MAX_DEADLINE_S:
        raise InvalidInput(f"--deadline '{text}' is too far off; a year before 2255 is allowed.")
    if at_s <= now_s:
        raise InvalidInput(f"--deadline '{text}' has passed already; a time in the future is needed.")
    return at_s


def metric(text: str) -> tuple[str, Direction]:
    name, _, direction = text.partition(":")
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"--metric '{text}' is no metric: write a name, or NAME:max where higher is better.")
    for known in get_args(Direction):
        if (direction or "min") == known:
            return name, known
    raise UnknownName("--metric direction", direction, get_args(Direction))


def progress(text: str, metric_name: str) -> tuple[ProgressKind, str]:
    """(kind, pattern) as `core.nouns.Progress` has them."""
    kind, _, rest = text.partition(":")
    if kind == "report":
        if rest:
            raise InvalidInput(f"--progress '{text}': report takes nothing behind it.")
        return "report", ""
    if kind == "regex":
        try:
            groups = re.compile(rest).groupindex
        except re.error as error:
            raise InvalidInput(f"--progress '{text}' holds no regular expression: {error}.") from None
        if not {"step", "loss"} <= set(groups):
            raise InvalidInput(
                f"--progress '{text}': the pattern needs the groups step and loss, "
                r"as in 'regex:step (?P<step>\d+) loss (?P<loss>\S+)'."
            )
        return "regex", rest
    if kind == "jsonl":
        return "jsonl", rest or metric_name
    if kind == "tensorboard":
        folder, _, tag = rest.partition(":")
        if not folder:
            raise InvalidInput(f"--progress '{text}': a folder is needed, as in tensorboard:runs/1.")
        return "tensorboard", f"{folder}:{tag or metric_name}"
    raise UnknownName("--progress", kind, get_args(ProgressKind))


def environment(pairs: Sequence[str], own: Mapping[str, str]) -> dict[str, str]:
    """`KEY=VALUE` as it stands, `KEY` alone with the caller's value."""
    chosen = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not _NAME.fullmatch(key):
            raise InvalidInput(f"--env '{pair}' names no variable: write KEY=VALUE, or KEY to pass yours on.")
        if not equals and key not in own:
            raise InvalidInput(f"--env '{key}': you have no such variable; write {key}=VALUE.")
        chosen[key] = value if equals else own[key]
    return chosen


def command(argv: Sequence[str], cwd: Path) -> tuple[str, ...]:
    """The command with its program as an absolute path, found the way the caller's shell would.

    The daemon may have been started elsewhere, so what `python` means is settled here, in the caller's environment. A
    script that is not there is told now, not minutes later in a log.
    """
    if not argv:
        raise InvalidInput("No command was given: write it behind two dashes, as in -- python train.py.")
    program = shutil.which(argv[0], path=os.environ.get("PATH")) if os.sep not in argv[0] else None
    if program is None:
        path = cwd / argv[0]
        if not path.is_file():
            raise InvalidInput(f"the program '{argv[0]}' does not exist, neither on PATH nor in '{cwd}'.")
        if not os.access(path, os.X_OK):
            raise InvalidInput(f"the program '{argv[0]}' is not executable: chmod +x it, or write `python {argv[0]}`.")
        program = str(path)
    if _PYTHON.fullmatch(Path(program).name):
        check_script(argv, cwd)
    return (str(Path(program).absolute()), *argv[1:])


def check_script(argv: Sequence[str], cwd: Path) -> None:
    """The script of `python [-u …] script.py` must exist; `-c` and `-m` name none."""
    words = iter(argv[1:])
    for word in words:
        if word in ("-c", "-m", "-") or (word.startswith("-") and word[-1] in "cm" and word[1:2].islower()):
            return
        if word in ("-W", "-X"):
            next(words, None)
        elif not word.startswith("-"):
            if "{" not in word and not (cwd / word).exists():
                raise InvalidInput(f"the script '{word}' does not exist in '{cwd}'.")
            return


def job(
    argv: Sequence[str],
    *,
    now_s: float,
    cwd: Path,
    job_id: str = "",
    sweep: str = "",
    user: str = "",
    kind: str = "exploratory",
    gpus_text: str = "1",
    gpu_types: Sequence[str] = (),
    gpu_memory: str = "",
    metric_text: str = "loss",
    progress_text: str = "report",
    steps: int = 0,
    priority: int = 0,
    after: Sequence[str] = (),
    held: bool = False,
    grace: str = DEFAULT_GRACE,
    preemptible: bool = True,
    restarts: int = 3,
    deadline_text: str = "",
    env: Sequence[str] = (),
    job_type: str = "",
    sm_util: float = 0.0,
    bw_util: float = 0.0,
    exclusive: bool = False,
) -> JobRequest:
    """One job from the texts of the options."""
    from tierline.cli.client import JobRequest

    kinds: tuple[JobKind, ...] = get_args(JobKind)
    if kind not in kinds:
        raise UnknownName("--kind", kind, kinds)
    low, high = gpus(gpus_text)
    within("--priority", priority, *PRIORITIES)
    within("--steps", steps, 0, MAX_STEPS)
    within("--restarts", restarts, 0, MAX_RESTARTS)
    grace_s = seconds_of("--grace", grace)
    if grace_s > MAX_GRACE_S:
        raise InvalidInput(f"--grace '{grace}': a day (24h) at most is allowed.")
    name, direction = metric(metric_text)
    how, pattern = progress(progress_text, name)
    return JobRequest(
        argv=command(argv, cwd),
        cwd=str(cwd),
        job_id=identifier("--name", job_id),
        user=identifier("--user", user),
        env=environment(env, os.environ),
        sweep=identifier("--sweep", sweep),
        kind=kinds[kinds.index(kind)],
        min_gpus=low,
        max_gpus=high,
        gpu_types=tuple(gpu_types),
        gpu_memory_bytes=bytes_of(gpu_memory),
        metric=name,
        direction=direction,
        progress=how,
        pattern=pattern,
        total_steps=steps,
        deadline_s=deadline(deadline_text, now_s),
        priority=priority,
        after=tuple(identifier("--after", each) for each in after),
        held=held,
        preemptible=preemptible,
        grace_s=grace_s,
        max_restarts=restarts,
        job_type=job_type,
        sm_util=sm_util,
        bw_util=bw_util,
        shareable=not exclusive,
    )


def sweep_of(sweep_id: str, metric_text: str, chance: float | None, target: float | None) -> SweepRequest:
    """The sweep to declare, its chance and target in the metric's own unit."""
    from tierline.cli.client import SweepRequest

    name, direction = metric(metric_text)
    for option, value in (("--chance", chance), ("--target", target)):
        if value is not None and not math.isfinite(value):
            raise InvalidInput(f"{option} {value}: a finite number is needed.")
    return SweepRequest(sweep_id=sweep_id, metric=name, direction=direction, chance=chance, target=target)
