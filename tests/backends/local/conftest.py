"""A real backend on a temporary folder. What happened is read from events, files and /proc, with bounded waits."""

from __future__ import annotations

import json
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tierline.backends.jobs import cgroup
from tierline.backends.jobs.local import LocalBackend
from tierline.backends.jobs.processes import environment, kill_all
from tierline.core.actions import PreemptJob, StartJob, StopJob
from tierline.core.events import Event, JobExited, JobStarted, ProgressReported
from tierline.core.nouns import NS_PER_S, Job, Report

PATIENCE_S = 20.0


class RecordingClock:
    """The clock's side of the contract: keeps what was posted."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._lock = threading.Lock()

    def now_ns(self) -> int:
        return time.time_ns()

    def post(self, event: Event, *, at_ns: int | None = None) -> None:
        with self._lock:
            self.events.append(event)

    def next(self) -> Event | None:
        raise NotImplementedError


class Site:
    """One state folder with jobs; `open` makes a backend over it as a (restarted) daemon would."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.clock = RecordingClock()
        self.jobs: dict[str, Job] = {}
        self.backends: list[LocalBackend] = []

    @staticmethod
    def eventually(condition: Callable[[], object], what: str = "the condition") -> None:
        """Wait until `condition()` holds; fail when it does not come true for a long time."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end, f"{what} did not come true"
            time.sleep(0.01)

    def open(self, attempts: tuple = (), **options: object) -> LocalBackend:
        backend = LocalBackend(self.clock, self.root, "here", self.jobs.__getitem__, 0.02, **options)
        self.backends.append(backend)
        backend.recover(attempts)
        backend.start()
        return backend

    def script(self, job_id: str, body: str, **fields: object) -> Job:
        """A job that runs `body` as a Python program that can import tierline."""
        source = str(Path(__file__).resolve().parents[3] / "src")
        code = f"import sys; sys.path.insert(0, {source!r})\n" + textwrap.dedent(body)
        return self.job(job_id, (sys.executable, "-c", code), **fields)

    def job(self, job_id: str, argv: tuple[str, ...], **fields: object) -> Job:
        fields.setdefault("grace_ns", 10 * NS_PER_S)
        job = Job(job_id=job_id, argv=argv, **fields)
        self.jobs[job_id] = job
        return job

    def start(self, job_id: str, attempt: int = 1, resume: bool = False, devices: tuple[str, ...] = ("cpu0",)) -> None:
        self.backends[-1].execute(StartJob(job_id, attempt, devices, resume, "test"))

    def preempt(self, job_id: str, attempt: int = 1) -> None:
        self.backends[-1].execute(PreemptJob(job_id, attempt, "test"))

    def stop(self, job_id: str, attempt: int = 1) -> None:
        self.backends[-1].execute(StopJob(job_id, attempt, "test"))

    def prints(self, job_id: str, text: str) -> None:
        self.eventually(lambda: text in self.log(job_id), f"{text!r} in the log of {job_id}")

    def folder(self, job_id: str) -> Path:
        return self.root / "jobs" / job_id

    def log(self, job_id: str) -> str:
        path = self.folder(job_id) / "log"
        return path.read_text() if path.exists() else ""

    def exits(self, job_id: str) -> list[JobExited]:
        return [e for e in list(self.clock.events) if isinstance(e, JobExited) and e.job_id == job_id]

    def exited(self, job_id: str, attempt: int = 1) -> JobExited:
        self.eventually(lambda: any(e.attempt == attempt for e in self.exits(job_id)), f"the end of {job_id}")
        return next(e for e in self.exits(job_id) if e.attempt == attempt)

    def started(self, job_id: str, attempt: int = 1) -> None:
        self.eventually(lambda: JobStarted(job_id, attempt) in list(self.clock.events), f"the start of {job_id}")

    def reports(self, job_id: str) -> list[Report]:
        batches = [e.reports for e in list(self.clock.events) if isinstance(e, ProgressReported)]
        return [report for batch in batches for report in batch if report.job_id == job_id]

    def alive(self, job_id: str) -> set[int]:
        """Pids of the job's processes, found from outside by their environment."""
        mark = f"TIERLINE_REPORT_FILE={self.folder(job_id)}/reports.jsonl".encode()
        return {int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit() and mark in environment(int(p.name))}

    def supervisors(self) -> set[int]:
        """Pids of the supervisors of this site, by their command line."""
        found = set()
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                words = path.read_bytes().split(b"\0")
            except OSError:
                continue
            if len(words) > 4 and words[3].endswith(b"supervisor.py") and words[4].startswith(bytes(self.root)):
                found.add(int(path.parent.name))
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    for backend in made.backends:
        backend.close()
    kill_all(made.supervisors())
    for job_id in made.jobs:
        kill_all(made.alive(job_id))
    for path in made.root.glob("jobs/*/attempt-*/pid.json"):
        if group := json.loads(path.read_text())["cgroup"]:
            cgroup.kill(Path(group))
            made.eventually(lambda group=group: not cgroup.pids(Path(group)), "an empty cgroup")
            cgroup.remove(Path(group))
