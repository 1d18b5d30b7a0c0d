"""Two jobs on one device of this machine: every job under the interposer, and what its arbiter saw of them.

The arbiter of a GPU is the region of that device (`kernels/place.py`), which the daemon manages from the first job on, so
that `tierline run` joins it and `tierline run --share` is refused; that of a declared slot lies in the state folder
(`devices/cpu0.region`). A running process cannot be preloaded, so each job on one device starts under the interposer, alone
or not, and a later one can join it. A job on several devices would need an arbiter for each and there is one setting for it:
it runs without, and is not shared (`server/accept.py` sees to that).

Speed. While a job has the device to itself its *own pace* is learnt: launches per second of wall time. Beside another its
speed is its pace over its own one, so that waits at the gate, slower kernels and idle stretches of the program itself all
count as they should. A job that never was alone is judged by the time it lost: its waits at the gate, and what its kernels
took beyond the time that they were predicted to take alone. Where the arbiter has seen too little of them, nothing is told.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tierline.backends.jobs.devices import device_indices
from tierline.core.errors import InvalidInput, MissingNative, TierlineError
from tierline.core.events import SlowdownSeen
from tierline.core.nouns import Job
from tierline.kernels import environment, native, region
from tierline.kernels.calibration import known_limits
from tierline.kernels.place import in_use, managing, place_of
from tierline.policies.kernels import DEFAULT_MODE, DEFAULT_POLICY

logger = logging.getLogger(__name__)

WINDOW_S = 10.0
LEAST_SEEN = 0.1  # of the window must have been observed before a job is judged by its kernels
Key = tuple[str, int]  # (job, attempt)


def check_sharing() -> None:
    """Raises `MissingNative` when devices cannot be shared on this machine."""
    try:
        environment.library_path()
    except MissingNative:
        raise MissingNative(
            "the preload library libtierline_interpose.so, without which devices cannot be shared,"
        ) from None


def _has_clients(path: Path) -> bool:
    try:
        return any(client.is_here and _lives(client.pid) for client in region.read_region(path, changes=False).clients)
    except TierlineError:
        return False


def _lives(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


@dataclass(slots=True)
class _Sample:
    """What the arbiter had counted for an attempt at a moment, and who was beside it since."""

    time_ns: int
    beside: tuple[str, ...]
    launches: int
    predicted_ns: int
    observed_ns: int
    wait_ns: int
    is_waiting: bool


@dataclass(slots=True)
class DeviceSharing:
    """Regions of this machine's devices, and the slowdowns seen in them. Called from one thread."""

    root: Path
    window_s: float = WINDOW_S
    _samples: dict[Key, _Sample] = field(default_factory=dict)
    _own_pace: dict[Key, float] = field(default_factory=dict)
    _next_look_s: float = 0.0
    _broken: set[Path] = field(default_factory=set)
    _claims: dict[str, contextlib.ExitStack] = field(default_factory=dict)

    def region(self, device_id: str) -> Path:
        (index,), is_gpu = device_indices((device_id,))
        return place_of(int(index)).region if is_gpu else self.root / "devices" / f"{device_id}.region"

    def close(self) -> None:
        for claim in self._claims.values():
            claim.close()
        self._claims.clear()

    def _claim(self, device_id: str) -> None:
        """Be the GPU's only manager until `close`. Its region is begun anew unless jobs of an earlier daemon use it still."""
        (index,), is_gpu = device_indices((device_id,))
        if not is_gpu or device_id in self._claims:
            return
        place = place_of(int(index))
        with contextlib.ExitStack() as claim:
            claim.enter_context(managing(place))
            claim.enter_context(in_use(place))
            if place.region.exists() and not _has_clients(place.region):
                place.region.unlink()
            self._claims[device_id] = claim.pop_all()

    def environment(
        self, job: Job, device_ids: tuple[str, ...], is_guest: bool, base: Mapping[str, str]
    ) -> dict[str, str]:
        """What to add to `base` for the job; {} for one on several devices. Raises `TierlineError`, `OSError`."""
        if len(device_ids) != 1:
            return {}
        self._claim(device_ids[0])
        path = self.region(device_ids[0])
        limits = known_limits(int(device_indices(device_ids)[0][0]))
        if not path.exists():
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            try:
                native.make_region(path, DEFAULT_POLICY, DEFAULT_MODE, limits)
            except RuntimeError as error:
                raise InvalidInput(f"the arbiter of {device_ids[0]} cannot be made: {error}.") from None
        return environment.kernel_environment(
            path,
            DEFAULT_POLICY,
            DEFAULT_MODE,
            "best-effort" if is_guest else "high",
            label_of(job.job_id),
            job.gpu_memory_bytes,
            device_spec=limits.spec if limits else "",
            base=base,
        )

    def look(self, now_ns: int, running: Collection[tuple[Key, tuple[str, ...]]]) -> list[SlowdownSeen]:
        """Slowdowns of the window that has just ended; [] in between. `running`: attempts and their devices."""
        if time.monotonic() < self._next_look_s:
            return []
        self._next_look_s = time.monotonic() + self.window_s
        users: dict[str, list[Key]] = {}
        for key, device_ids in running:
            if len(device_ids) == 1:
                users.setdefault(device_ids[0], []).append(key)
        for gone in self._samples.keys() - {key for keys in users.values() for key in keys}:
            del self._samples[gone]
            self._own_pace.pop(gone, None)
        return [seen for device_id, keys in users.items() for seen in self._look_at(now_ns, device_id, keys)]

    def _look_at(self, now_ns: int, device_id: str, keys: list[Key]) -> list[SlowdownSeen]:
        path = self.region(device_id)
        try:
            clients = region.read_region(path, changes=False).clients
        except TierlineError as error:
            if path not in self._broken:
                self._broken.add(path)
                logger.warning("device %s: its arbiter cannot be read: %s", device_id, error)
            return []
        found = []
        for job_id, attempt in keys:
            own = [client for client in clients if client.name == label_of(job_id) and client.is_here]
            if not own:
                continue
            seen = region.together(own)
            beside = tuple(sorted(other for other, _ in keys if other != job_id))
            busy = seen.predicted_busy_ns, seen.observed_busy_ns, seen.wait_ns
            now = _Sample(now_ns, beside, seen.launches, *busy, seen.is_waiting)
            before, self._samples[job_id, attempt] = self._samples.get((job_id, attempt)), now
            told = self._speed((job_id, attempt), before, now)
            if told is not None:
                found.append(told)
        return found

    def _speed(self, key: Key, before: _Sample | None, now: _Sample) -> SlowdownSeen | None:
        """The speed within the window, if the job was beside the same one all the time and launched, or wanted to."""
        if before is None or before.beside != now.beside:
            return None
        wall_ns, launches = now.time_ns - before.time_ns, now.launches - before.launches
        if wall_ns <= 0 or launches < 0 or (launches == 0 and not (now.is_waiting and now.beside)):
            return None
        pace = launches / wall_ns
        if not now.beside:
            known = self._own_pace.get(key, pace)
            self._own_pace[key] = 0.5 * known + 0.5 * pace
            return None
        own = self._own_pace.get(key)
        speed = pace / own if own else _by_lost_time(before, now, wall_ns) if launches else 0.0  # it waits at the gate
        return None if speed is None else SlowdownSeen(*key, now.beside, min(speed, 1.0), wall_ns, launches)


def _by_lost_time(before: _Sample, now: _Sample, wall_ns: int) -> float | None:
    """1 − lost / window. A kernel-bound job thus has predicted over wall time, a launch-bound one the time that it did not
    wait; waits that overlap with the job's own kernels count as lost too, so this is rather too little than too much."""
    observed_ns, wait_ns = now.observed_ns - before.observed_ns, now.wait_ns - before.wait_ns
    if observed_ns + wait_ns < LEAST_SEEN * wall_ns:
        return None
    lost_ns = wait_ns + max(observed_ns - (now.predicted_ns - before.predicted_ns), 0)
    return max(1.0 - lost_ns / wall_ns, 0.0)


def label_of(job_id: str) -> str:
    """The job's name in a region."""
    return job_id[: environment.LABEL_BYTES]
