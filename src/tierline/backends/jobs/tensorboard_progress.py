"""Progress from TensorBoard event files, read by the `tensorboard` package (extra `tensorboard`), imported here alone.

The stream is the sequence of values of one tag over all event files of the folder, oldest file first (their names begin
with the time of their making); `Report.offset` counts the values taken, so a restarted daemon skips just these.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from tierline.backends.jobs.progress import Malformed, finite_loss, whole_step
from tierline.core.errors import MissingExtra
from tierline.core.nouns import NS_PER_S, Job, Report

try:
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util.tensor_util import make_ndarray
except ImportError as error:
    raise MissingExtra("reading progress from TensorBoard files", "tensorboard") from error


logger = logging.getLogger(__name__)


class TensorBoardReader:
    """Implements `progress.ProgressReader`. A file that is still being written is read on at the next poll."""

    def __init__(self, folder: Path, tag: str, job: Job, attempt: int, offset: int) -> None:
        self._folder = folder
        self._tag = tag
        self._job = job
        self._attempt = attempt
        self._taken = offset
        self._seen = 0
        self._loaders: dict[str, Any] = {}
        self._unreadable: set[str] = set()
        self.skipped = 0
        self.newest_step = -1

    def skip_to_end(self) -> int:
        self.poll(0, ended=False)
        self._taken = self._seen
        self.skipped, self.newest_step = 0, -1
        return self._taken

    def poll(self, now_ns: int, ended: bool) -> tuple[Report, ...]:
        del ended  # records have a length and a checksum: a torn one is simply not there yet
        reports: list[Report] = []
        for path in sorted(self._folder.glob("*.tfevents.*")) if self._folder.is_dir() else ():
            if path.name in self._unreadable or not path.is_file():
                continue
            try:
                self._read(path, now_ns, reports)
            except Exception as error:  # damage comes up as errors of many kinds, from three packages
                self._unreadable.add(path.name)
                self.skipped += 1
                logger.warning("job %s: '%s' cannot be read: %s", self._job.job_id, path, error)
        return tuple(reports)

    def _read(self, path: Path, now_ns: int, reports: list[Report]) -> None:
        """Append what is new in one file."""
        loader = self._loaders.get(path.name)
        if loader is None:
            loader = self._loaders[path.name] = EventFileLoader(str(path))
        for event in loader.Load():
            for value in event.summary.value:
                if value.tag == self._tag:
                    report = self._report(event.step, event.wall_time, value, now_ns)
                    if report is not None:
                        reports.append(report)

    def _report(self, step: int, wall_time_s: float, value: Any, now_ns: int) -> Report | None:
        self._seen += 1
        if self._seen <= self._taken:
            return None
        try:
            number = float(make_ndarray(value.tensor).item()) if value.HasField("tensor") else value.simple_value
            loss = finite_loss(number, self._job.metric)
            whole_step(step)
        except (Malformed, TypeError, ValueError):
            self.skipped += 1
            return None
        self.newest_step = max(self.newest_step, step)
        time_ns = min(int(wall_time_s * NS_PER_S), now_ns)
        return Report(self._job.job_id, step, loss, time_ns, self._attempt, self._seen)
