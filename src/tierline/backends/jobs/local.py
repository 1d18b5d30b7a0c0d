"""Runs jobs on this machine: every attempt under a supervisor of its own, watched through its run folder.

The daemon may die at any moment: intent is on disk before anything starts, a supervisor needs nobody, and `recover`
compares what the scheduler believes with what is there. One thread looks at all attempts every `poll_s`.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tierline.backends.jobs.devices import Nvml, describe, foreign_processes
from tierline.backends.jobs.launch import LOG_CAP_BYTES, start_supervisor, write_intent
from tierline.backends.jobs.progress import ProgressReader, ReportFileReader, check_progress, reader_for
from tierline.backends.jobs.rundir import JobFolder, read_json
from tierline.backends.jobs.sharing import DeviceSharing
from tierline.backends.jobs.watch import AttemptWatch, Leaving, kill_leftovers, signal_supervisor
from tierline.core.actions import Action, PreemptJob, StartJob, StopJob
from tierline.core.contracts import Clock
from tierline.core.errors import TierlineError
from tierline.core.events import DevicesBlocked, JobExited
from tierline.core.nouns import Device, Job, Outcome
from tierline.core.status import AttemptStatus

logger = logging.getLogger(__name__)

_FOREIGN_LOOK_S = 5.0


class LocalBackend:
    """Implements `core.contracts.Backend`. `lookup` gives the job of an id; `root` is the state folder.

    Order of use: `recover` once with what the scheduler believes to run, `start`, then `execute` as the loop demands.
    `close` ends the watching only: the jobs go on and are adopted by the next daemon. With `nvml` and `devices` the
    processes of others on our GPUs are looked for, and `DevicesBlocked` is posted whenever that changes. With `sharing`
    all jobs on one device run under the interposer, and `SlowdownSeen` is posted of those that share it.
    """

    def __init__(
        self,
        clock: Clock,
        root: Path,
        node_name: str,
        lookup: Callable[[str], Job],
        poll_s: float = 0.2,
        *,
        devices: Sequence[Device] = (),
        nvml: Nvml | None = None,
        sharing: DeviceSharing | None = None,
        log_cap_bytes: int = LOG_CAP_BYTES,
    ) -> None:
        self._clock = clock
        self._root = root.resolve()
        self._node_name = node_name
        self._lookup = lookup
        self._poll_s = poll_s
        self._devices = tuple(devices)
        self._nvml = nvml
        self._sharing = sharing
        self._log_cap_bytes = log_cap_bytes
        self._lock = threading.Lock()  # guards the dict; a watch itself is advanced by the monitor thread alone
        self._watches: dict[tuple[str, int], AttemptWatch] = {}
        self._broken: set[tuple[str, int]] = set()
        self._blocked: tuple[str, ...] | None = None  # unknown: the scheduler may remember what an earlier daemon saw
        self._next_foreign_look_s = 0.0
        self._closing = threading.Event()
        self._monitor: threading.Thread | None = None
        (self._root / "jobs").mkdir(mode=0o700, parents=True, exist_ok=True)

    def start(self) -> None:
        """Begin to watch. Raises `RuntimeError` when called twice."""
        if self._monitor is not None:
            raise RuntimeError("the backend is started already")
        self._watch_devices()  # before anything is placed
        self._monitor = threading.Thread(target=self._watch_all, name="tierline-jobs", daemon=True)
        self._monitor.start()

    def close(self) -> None:
        self._closing.set()
        if self._monitor is not None:
            self._monitor.join()
        with self._lock:
            for watch in self._watches.values():
                watch.release()
        if self._sharing is not None:
            self._sharing.close()

    def log_path(self, job_id: str) -> Path:
        """The job's output, all attempts in one file; its older half is beside it as `log.1` once it was rotated."""
        return JobFolder(self._root, job_id).log

    def execute(self, action: Action) -> None:
        if isinstance(action, StartJob):
            self._begin(action.job_id, action.attempt, action.device_ids, action.resume, action.shares_with)
        elif isinstance(action, PreemptJob):
            self._ask_to_leave(action.job_id, action.attempt, "preempt")
        elif isinstance(action, StopJob):
            self._ask_to_leave(action.job_id, action.attempt, "stop")

    def recover(self, attempts: Sequence[AttemptStatus]) -> None:
        """Make what exists match what was recorded, before the loop runs.

        Recorded but never launched: launched now, or answered at once if it was to leave. Running: adopted, and asked
        to leave again if so. Ended or dead: the monitor finds that at its first look, reports first. Attempts that
        live without the scheduler's knowledge are killed.
        """
        for status in attempts:
            folder = JobFolder(self._root, status.job_id)
            ours = folder.attempt(status.attempt)
            leaving: Leaving = "" if not status.leaving else "stop" if status.stop_for_good else "preempt"
            if leaving and not ours.started.exists():
                ours.path.mkdir(parents=True, exist_ok=True)
                if ours.claim():
                    outcome: Outcome = "stopped" if leaving == "stop" else "preempted"
                    self._exited(status.job_id, status.attempt, outcome, "asked to leave before it was started")
                    continue
            if ours.started.exists():
                self._adopt(status, folder)
            else:
                self._begin(status.job_id, status.attempt, status.device_ids, status.resume, status.shares_with)
            if leaving:
                self._ask_to_leave(status.job_id, status.attempt, leaving)
        self._kill_unknown({(status.job_id, status.attempt) for status in attempts})

    def foreign_processes(self) -> Mapping[str, tuple[int, ...]]:
        """device id -> pids of others that use it now; empty without NVML."""
        if self._nvml is None:
            return {}
        with self._lock:
            watches = list(self._watches.values())
        return foreign_processes(
            self._nvml,
            self._devices,
            self._root,
            {watch.supervisor_pid for watch in watches if watch.supervisor_pid},
            {device_id for watch in watches for device_id in watch.device_ids},
        )

    def _begin(
        self, job_id: str, attempt: int, device_ids: tuple[str, ...], resume: bool, shares_with: tuple[str, ...]
    ) -> None:
        with self._lock:
            if (job_id, attempt) in self._watches:
                logger.warning("job %s: attempt %d is started already", job_id, attempt)
                return
        job = self._lookup(job_id)
        try:
            folder = JobFolder(self._root, job_id)
            ours = folder.attempt(attempt)
            if ours.started.exists():
                self._adopt(AttemptStatus(job_id, attempt, device_ids, resume, False, False, 0), folder)
                return
            if not job.argv:
                raise ValueError("the job has no command")
            check_progress(job)
            cwd = Path(job.cwd) if job.cwd else folder.path
            reader = reader_for(job, attempt, folder.reports, cwd, folder.checkpoints, 0)
            offset = reader.skip_to_end()  # what earlier attempts told has been told
            write_intent(
                job, attempt, resume, device_ids, folder, offset, self._log_cap_bytes, self._sharing, bool(shares_with)
            )
            launcher = start_supervisor(ours)
        except (ValueError, TierlineError) as error:
            self._exited(job_id, attempt, "failed", f"cannot start: {error}")
            return
        except OSError as error:
            self._exited(job_id, attempt, "lost", f"cannot write its run folder: {error}")
            return
        self._watch(AttemptWatch(job, attempt, device_ids, folder, reader, launcher))

    def _adopt(self, status: AttemptStatus, folder: JobFolder) -> None:
        job = self._lookup(status.job_id)
        spec = read_json(folder.attempt(status.attempt).spec) or {}
        offset = max(status.report_offset, int(spec.get("report_offset", 0)))
        cwd = Path(job.cwd) if job.cwd else folder.path
        reader: ProgressReader
        try:
            reader = reader_for(job, status.attempt, folder.reports, cwd, folder.checkpoints, offset)
        except TierlineError as error:  # an extra was removed meanwhile: the job itself is none the worse
            logger.warning("job %s: its progress cannot be read: %s", status.job_id, error)
            reader = ReportFileReader(folder.reports, job, status.attempt, offset)
        self._watch(AttemptWatch(job, status.attempt, status.device_ids, folder, reader, None))

    def _watch(self, watch: AttemptWatch) -> None:
        with self._lock:
            self._watches[watch.job.job_id, watch.attempt] = watch

    def _ask_to_leave(self, job_id: str, attempt: int, leaving: Leaving) -> None:
        with self._lock:
            watch = self._watches.get((job_id, attempt))
        if watch is not None:  # else it has ended, and its JobExited is on the way
            watch.ask_to_leave(leaving)

    def _exited(self, job_id: str, attempt: int, outcome: Outcome, reason: str) -> None:
        self._clock.post(JobExited(job_id, attempt, outcome, reason))

    def _kill_unknown(self, known: set[tuple[str, int]]) -> None:
        for path in (self._root / "jobs").glob("*/attempt-*"):
            number = path.name.removeprefix("attempt-")
            if not number.isdigit() or (path.parent.name, int(number)) in known or (path / "exit.json").exists():
                continue
            folder = JobFolder(self._root, path.parent.name)
            ours = folder.attempt(int(number))
            ours.claim()
            if ours.is_supervised():
                logger.error("job %s: attempt %s runs but is in no record; it is killed", path.parent.name, number)
                signal_supervisor(folder, int(number), signal.SIGKILL)
                give_up_s = time.monotonic() + 5.0
                while not kill_leftovers(folder, int(number)) and time.monotonic() < give_up_s:
                    time.sleep(0.02)

    def _watch_all(self) -> None:
        while not self._closing.wait(self._poll_s):
            with self._lock:
                watches = list(self._watches.items())
            for key, watch in watches:
                try:
                    self._look_at(key, watch)
                except Exception:  # one broken run folder must not blind us to the other jobs
                    if key not in self._broken:
                        self._broken.add(key)
                        logger.exception("job %s: cannot be watched", watch.job.job_id)
            self._watch_sharing()
            self._watch_devices()

    def _watch_sharing(self) -> None:
        if self._sharing is None:
            return
        with self._lock:
            running = [(key, watch.device_ids) for key, watch in self._watches.items()]
        try:
            for seen in self._sharing.look(self._clock.now_ns(), running):
                self._clock.post(seen)
        except Exception:
            logger.exception("the arbiters cannot be read")

    def _look_at(self, key: tuple[str, int], watch: AttemptWatch) -> None:
        events = watch.observe(self._clock.now_ns())
        if events and isinstance(events[-1], JobExited):
            watch.release()
            with self._lock:
                del self._watches[key]
        for event in events:
            self._clock.post(event)

    def _watch_devices(self) -> None:
        try:
            self._look_for_foreigners()
        except Exception:
            logger.exception("the devices cannot be watched")

    def _look_for_foreigners(self) -> None:
        if self._nvml is None or time.monotonic() < self._next_foreign_look_s:
            return
        self._next_foreign_look_s = time.monotonic() + _FOREIGN_LOOK_S
        found = self.foreign_processes()
        blocked = tuple(sorted(found))
        if blocked != self._blocked:
            self._blocked = blocked
            users = sorted({pid for pids in found.values() for pid in pids})
            reason = f"used by {', '.join(describe(pid) for pid in users)}" if users else "free again"
            self._clock.post(DevicesBlocked(self._node_name, blocked, reason))
