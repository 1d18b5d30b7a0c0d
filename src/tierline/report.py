"""What a training script imports. Standard library only; outside Tierline it does nothing and costs nothing.

::

    import tierline
    for step in range(steps):
        loss = train_one_step()
        tierline.report(step, loss=loss)
        if tierline.should_stop():
            tierline.save_checkpoint("last.pt", lambda f: torch.save(model.state_dict(), f))
            break

The contract is made of environment variables, so that a program in any language can keep it:
`TIERLINE_REPORT_FILE` (JSON lines are appended to it), `TIERLINE_CHECKPOINT_DIR`, `TIERLINE_RESUME` ("1" when an
earlier attempt may have left a checkpoint) and `TIERLINE_REPORT_RANK` (the rank that reports, default "0"; or "all").
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

_stop_seen = False
_handler_tried = False
_warned = False
_open_file: tuple[str, int] | None = None  # (path, file descriptor) of the report file, opened at the first report


def report(step: int, loss: Any = None, **metrics: Any) -> None:
    """Report progress: `step` counts up from 0 or 1, `loss` is lower-is-better, further metrics go by keyword.

    Numbers may be anything that `float()` takes (also one-element tensors); NaN and infinities are allowed. A job that
    is judged by another metric names it: `report(step, accuracy=0.9)`. In a program of several processes only rank 0
    (`RANK`, else `SLURM_PROCID`) reports. A full disk never stops the training: the report is dropped with one warning.
    Raises `TypeError` or `ValueError`, inside Tierline only, when a value is no number.
    """
    path = os.environ.get("TIERLINE_REPORT_FILE")
    if not path or not _is_reporting_rank():
        return
    record: dict[str, int | float | str] = {"step": _step(step)}
    if loss is not None:
        record["loss"] = _number("loss", loss)
    for name, value in metrics.items():
        if name == "time_ns":
            raise TypeError("report() sets 'time_ns' itself; give the metric another name.")
        record[name] = _number(name, value)
    record["time_ns"] = time.time_ns()
    _append(path, record)


def should_stop() -> bool:
    """True once Tierline has asked this job to checkpoint and leave; call it every step, it costs a microsecond.

    The first call in the main thread takes over SIGTERM (an earlier Python handler still runs after ours), so a script
    that asks once must go on asking. In other threads, and in worker processes, the stop flag in the run folder tells.
    """
    path = os.environ.get("TIERLINE_REPORT_FILE")
    if not path:
        return False
    if not _handler_tried:
        _install_handler()
    return _stop_seen or os.path.exists(
        os.path.join(os.path.dirname(path), f"attempt-{os.environ.get('TIERLINE_ATTEMPT', '1')}", "stop")
    )


def resuming() -> bool:
    """True when an earlier attempt of this job ran, so that `checkpoint_dir()` may hold a checkpoint to go on from."""
    return os.environ.get("TIERLINE_RESUME") == "1"


def checkpoint_dir() -> Path:
    """The folder that survives preemption, made if absent. Outside Tierline it is `./checkpoints`."""
    from pathlib import Path

    folder = Path(os.environ.get("TIERLINE_CHECKPOINT_DIR") or "checkpoints")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def save_checkpoint(name_or_path: str | os.PathLike[str], data: bytes | Callable[[BinaryIO], object]) -> Path:
    """Write a checkpoint so that at any moment either the old or the new one is there in full; returns its path.

    A relative name is taken within `checkpoint_dir()`. `data` is the content, or a function that writes it to the
    binary file it is given. On return the file is on the disk. Any failure (a full disk, an exception in `data`)
    leaves the old checkpoint as it was and is raised.
    """
    target = checkpoint_dir() / name_or_path  # an absolute path replaces the folder
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.{os.getpid()}.{threading.get_ident()}.partial")
    try:
        with open(partial, "wb") as file:
            if callable(data):
                data(file)
            else:
                file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the new name itself must survive a power cut
    finally:
        os.close(folder)
    return target


def _is_reporting_rank() -> bool:
    wanted = os.environ.get("TIERLINE_REPORT_RANK", "0")
    return wanted == "all" or (os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or "0") == wanted


def _step(value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise TypeError(f"report() got step={value!r}; a whole number is allowed.") from None


def _number(name: str, value: Any) -> float | str:
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"report() got {name}={value!r}; a number is allowed.") from None
    if number != number:
        return "nan"
    if number in (float("inf"), float("-inf")):
        return "inf" if number > 0 else "-inf"
    return number


def _append(path: str, record: dict[str, int | float | str]) -> None:
    """One write to a file opened with O_APPEND: whole lines even when several processes report."""
    import json

    global _open_file, _warned
    line = json.dumps(record).encode() + b"\n"
    try:
        if _open_file is None or _open_file[0] != path:
            if _open_file is not None:
                os.close(_open_file[1])
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
            _open_file = (path, os.open(path, flags, 0o600))
        written = os.write(_open_file[1], line)
        if 0 < written < len(line):  # the disk filled up: end the torn line, lest it swallow the next one
            os.write(_open_file[1], b"\n")
    except OSError as error:
        _open_file = None  # a process that closed all its files gets a fresh one at the next report
        if not _warned:
            _warned = True
            print(f"tierline: cannot write a report to {path}: {error}", file=sys.stderr)


def _install_handler() -> None:
    global _handler_tried
    if threading.current_thread() is not threading.main_thread():
        return  # Python allows handlers in the main thread only; the stop flag serves here
    _handler_tried = True
    earlier = signal.getsignal(signal.SIGTERM)
    if earlier is None:
        return  # not installed from Python: taking it over could not be chained

    def on_sigterm(number: int, frame: Any) -> None:
        global _stop_seen
        _stop_seen = True
        if callable(earlier):
            earlier(number, frame)

    signal.signal(signal.SIGTERM, on_sigterm)
