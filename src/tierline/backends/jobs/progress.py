"""How progress is read: the one place that knows the rules of report files and of lines on stdout.

A report line is a JSON object: `{"step": 3, "loss": 0.5, "time_ns": 1700000000000000000}`. Rules:

- `step` is a whole number from 0 to 2^53 and must be there; `time_ns` is taken as now when absent or in the future.
- The value is found under the job's metric name, else under `loss` (until the metric itself was seen once: then lines
  without it only tell of other things). It is a number, or one of the strings "nan", "inf", "-inf".
- NaN and infinities give `loss=None`; any other number passes as it is; `max` metrics are negated here.
- A line that breaks these rules is skipped and counted. A last line without its end is left until it is complete; when
  the attempt has ended it is taken if it is whole JSON, else skipped.
- A job that reports faster than it can be read (thousands of lines a second, for long) loses the oldest unread lines
  beyond 16 MiB: its flood must not fill our memory, nor keep its own end from being seen.

Lines that are read from stdout (`regex`, `jsonl`) become report lines in the supervisor, which knows when they came.
"""

from __future__ import annotations

import importlib
import io
import json
import logging
import math
import os
import re
from pathlib import Path
from typing import Any, Protocol

from tierline.backends.jobs.rundir import open_plain
from tierline.core.errors import InvalidInput
from tierline.core.nouns import Job, Metric, Report

MAX_STEP = 2**53
MAX_LINE_BYTES = 65_536
MAX_POLL_BYTES = 128 << 10
MAX_BACKLOG_BYTES = 16 << 20
logger = logging.getLogger(__name__)
_NOT_FINITE = ("nan", "inf", "-inf")


class Malformed(ValueError):
    """A line that is no report."""


class ProgressReader(Protocol):
    """Reads a job's reports piece by piece. `skipped` counts malformed lines, `newest_step` is −1 before the first."""

    skipped: int
    newest_step: int

    def skip_to_end(self) -> int:
        """Pass over all that is there before the attempt starts; the offset reached."""
        ...

    def poll(self, now_ns: int, ended: bool) -> tuple[Report, ...]:
        """What is new, oldest first; call again until it is empty. `ended`: nothing will be written any more."""
        ...


def check_progress(job: Job) -> None:
    """Raises `InvalidInput` or `MissingExtra` when the job's progress can never be read as declared."""
    kind, pattern = job.progress.kind, job.progress.pattern
    if kind in ("regex", "jsonl"):
        LineMatcher(kind, pattern)
    elif kind == "tensorboard":
        folder, _, tag = pattern.partition(":")
        if not folder or not tag:
            raise InvalidInput(f"progress pattern '{pattern}' is not usable; tensorboard needs 'FOLDER:TAG'.")
        # Imported here, where nobody waits but who asks: at the start of the job the whole loop would.
        importlib.import_module("tierline.backends.jobs.tensorboard_progress")


def reader_for(job: Job, attempt: int, reports: Path, folder: Path, checkpoints: Path, offset: int) -> ProgressReader:
    """The reader that fits the job. `folder` is its working folder, `offset` that of the last report taken."""
    if job.progress.kind == "tensorboard":
        from tierline.backends.jobs.tensorboard_progress import TensorBoardReader

        place, _, tag = job.progress.pattern.partition(":")
        place = place.replace("$TIERLINE_CHECKPOINT_DIR", str(checkpoints)).replace("$TIERLINE_JOB_ID", job.job_id)
        return TensorBoardReader(folder / place, tag, job, attempt, offset)
    return ReportFileReader(reports, job, attempt, offset)


def finite_loss(value: object, metric: Metric) -> float | None:
    """The lower-is-better loss that a reported value stands for; None when not finite. Raises `Malformed`."""
    if isinstance(value, str) and value in _NOT_FINITE:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Malformed(f"{value!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        return None
    if not math.isfinite(number):
        return None
    return -number if metric.direction == "max" else number


def whole_step(value: object) -> int:
    """`value` as a step. Raises `Malformed`."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_STEP:
        raise Malformed(f"{value!r} is no step")
    return value


class LineMatcher:
    """Finds step and loss in a line of stdout. Raises `InvalidInput` for a pattern that cannot."""

    def __init__(self, kind: str, pattern: str) -> None:
        self._key = pattern or "loss"
        self._regex: re.Pattern[str] | None = None
        if kind == "regex":
            try:
                self._regex = re.compile(pattern)
            except (re.error, RecursionError, OverflowError) as error:
                shown = pattern[:200]
                raise InvalidInput(f"progress pattern '{shown}' is no regular expression: {error}.") from None
            if not {"step", "loss"} <= self._regex.groupindex.keys():
                raise InvalidInput(
                    f"progress pattern '{pattern}' lacks a group; (?P<step>...) and (?P<loss>...) are needed."
                )

    def match(self, line: bytes) -> dict[str, Any] | None:
        """`{"step": ..., "loss": ...}` as in a report line, or None when the line tells of something else."""
        found = self._fields(line.decode(errors="replace"))
        if found is None:
            return None
        try:
            step = whole_step(found[0])
            finite_loss(found[1], Metric())
        except Malformed:
            return None
        value = found[1]
        return {"step": step, "loss": str(value) if isinstance(value, float) and not math.isfinite(value) else value}

    def _fields(self, line: str) -> tuple[object, object] | None:
        if self._regex is None:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                return None
            if not isinstance(record, dict) or self._key not in record:
                return None
            return record.get("step"), record[self._key]
        match = self._regex.search(line)
        if match is None:
            return None
        try:
            return float(match["step"]), float(match["loss"])
        except (TypeError, ValueError):
            return None


class ReportFileReader:
    """Reads reports.jsonl from a byte offset on, at most 128 KiB a poll."""

    def __init__(self, path: Path, job: Job, attempt: int, offset: int) -> None:
        self._path = path
        self._job = job
        self._attempt = attempt
        self._offset = offset
        self._own_metric_seen = offset > 0 and self._file_begins_with_own_metric()
        self.skipped = 0
        self.newest_step = -1

    def _file_begins_with_own_metric(self) -> bool:
        try:
            with open_plain(self._path) as file:
                return f"{json.dumps(self._job.metric.name)}:".encode() in file.read(MAX_LINE_BYTES)
        except OSError:
            return False

    def skip_to_end(self) -> int:
        try:
            self._offset = os.stat(self._path).st_size
        except OSError:
            self._offset = 0
        self._own_metric_seen = self._file_begins_with_own_metric()
        return self._offset

    def poll(self, now_ns: int, ended: bool) -> tuple[Report, ...]:
        while True:
            data = self._read()
            end = data.rfind(b"\n") + 1
            if end == 0 and (ended or len(data) > MAX_LINE_BYTES):
                end = len(data)  # the torn end of a stream that has ended, or a line that will never be one
            if end == 0:
                return ()
            reports = self._parse(data[:end], now_ns)
            self._offset += end
            if reports:
                return reports

    def _read(self) -> bytes:
        try:
            with open_plain(self._path) as file:
                backlog = os.fstat(file.fileno()).st_size - self._offset
                if backlog <= 0:
                    return b""
                if backlog > MAX_BACKLOG_BYTES:
                    logger.warning("job %s: reports too fast; the oldest unread ones are lost", self._job.job_id)
                    file.seek(self._offset + backlog - MAX_BACKLOG_BYTES // 2)
                    file.readline(MAX_LINE_BYTES)
                    self._offset = file.tell()
                file.seek(self._offset)
                return file.read(MAX_POLL_BYTES)
        except OSError:
            return b""

    def _parse(self, data: bytes, now_ns: int) -> tuple[Report, ...]:
        reports = []
        offset = self._offset
        for line in io.BytesIO(data):
            offset += len(line)
            if not line.strip():
                continue
            try:
                report = self._report(line, offset, now_ns)
            except Malformed:
                self.skipped += 1
                continue
            if report is not None:
                reports.append(report)
                self.newest_step = max(self.newest_step, report.step)
        return tuple(reports)

    def _report(self, line: bytes, offset: int, now_ns: int) -> Report | None:
        try:
            record = json.loads(line) if len(line) <= MAX_LINE_BYTES else None
        except (ValueError, RecursionError):
            raise Malformed("no JSON") from None
        if not isinstance(record, dict):
            raise Malformed("no JSON object")
        step = whole_step(record.get("step"))
        metric = self._job.metric
        if metric.name in record:
            self._own_metric_seen = True
            value = record[metric.name]
        elif "loss" in record and not self._own_metric_seen:
            value = record["loss"]
        else:
            return None
        time_ns = record.get("time_ns")
        if isinstance(time_ns, bool) or not isinstance(time_ns, int) or not 0 < time_ns <= now_ns:
            time_ns = now_ns
        return Report(self._job.job_id, step, finite_loss(value, metric), time_ns, self._attempt, offset)
