"""What a simulated job will really do, and what a simulation recorded: known to the sim backend and the judge only.

No policy or scheduler may import this module (an import contract checks it): a view holds no future.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Literal

import numpy as np

from tierline.core.nouns import Job, Outcome, Sweep
from tierline.core.views import Floats, Ints

End = Literal["completed", "failed", "stopped"]


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """The hidden course of one job.

    `steps` (P, increasing from 0) and `losses` (P, may hold NaN and inf) are the points of its full curve; point k is
    reported when the share `steps[k] / steps[-1]` of the work is done. `duration_s`: seconds for the full curve on
    `min_gpus` devices of the slowest type. At `stop_fraction` its user stops it, at `fail_fraction` it fails
    (1.0 = never); whichever is less ends it.
    """

    steps: Ints
    losses: Floats
    duration_s: float
    stop_fraction: float = 1.0
    fail_fraction: float = 1.0

    @property
    def shares(self) -> Floats:
        """Progress in 0..1 at each point (P)."""
        return self.steps / float(self.steps[-1])

    @property
    def end_fraction(self) -> float:
        return min(self.stop_fraction, self.fail_fraction, 1.0)

    @property
    def end(self) -> End:
        if self.end_fraction >= 1.0:
            return "completed"
        return "stopped" if self.stop_fraction <= self.fail_fraction else "failed"

    @property
    def diverges(self) -> bool:
        """Whether a loss before its end is NaN or infinite."""
        return not bool(np.isfinite(self.losses[self.shares <= self.end_fraction]).all())


@dataclass(frozen=True, slots=True, eq=False)
class Arrival:
    time_ns: int
    job: Job
    truth: Truth


@dataclass(frozen=True, slots=True)
class Normaliser:
    """Fixed scale of a sweep for judging: `chance` B, and `best` F, the lowest loss on any full curve of the sweep."""

    chance: float
    best: float


@dataclass(frozen=True)
class Workload:
    """Timed jobs with their hidden courses, generated once from a recipe. `entries` are in order of arrival.

    `gpus`: devices the load was scaled for. `normalisers` has one entry per sweep, in the order of `sweeps`.
    `recipe` is a frozen dataclass of every parameter; the same recipe always gives the same `hash`. `pair_speed`: true
    speed (0..1 of alone) of a job of the first measured type on a device that one of the second type uses too.
    """

    name: str
    recipe: object
    sweeps: tuple[Sweep, ...]
    normalisers: tuple[Normaliser, ...]
    entries: tuple[Arrival, ...] = field(repr=False)
    gpus: int = 1
    pair_speed: Mapping[tuple[str, str], float] = field(default_factory=dict, repr=False)

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over everything generated: arrivals, jobs, curves, ends, scales, devices and pairs."""
        digest = hashlib.sha256()
        _add(digest, repr((self.name, self.gpus)))
        for sweep, scale in zip(self.sweeps, self.normalisers, strict=True):
            _add(digest, _told(sweep, _SWEEP) + _told(scale, _SCALE))
        for entry in self.entries:
            truth = entry.truth
            _add(digest, f"{entry.time_ns} {_told(entry.job, _JOB)}")
            digest.update(np.asarray(truth.steps, dtype="<i8").tobytes())
            losses = np.where(np.isnan(truth.losses), np.nan, truth.losses)  # one NaN, not many
            digest.update(losses.astype("<f8").tobytes())
            ends = (truth.duration_s, truth.stop_fraction, truth.fail_fraction)
            digest.update(np.asarray(ends, dtype="<f8").tobytes())
        for pair, speed in sorted(self.pair_speed.items()):
            _add(digest, repr((pair, speed)))
        return digest.hexdigest()

    @property
    def first_ns(self) -> int:
        return self.entries[0].time_ns

    @property
    def horizon_ns(self) -> int:
        """Where utility is judged: last arrival × 1.1."""
        return int(self.entries[-1].time_ns * 1.1)

    @cached_property
    def normaliser_of(self) -> dict[str, Normaliser]:
        return {sweep.sweep_id: scale for sweep, scale in zip(self.sweeps, self.normalisers, strict=True)}


def _defaults(kind: type) -> tuple[tuple[str, object], ...]:
    return tuple((item.name, item.default) for item in fields(kind))


_JOB, _SWEEP, _SCALE = _defaults(Job), _defaults(Sweep), _defaults(Normaliser)


def _told(noun: object, defaults: tuple[tuple[str, object], ...]) -> str:
    """What is not at its default, so that a field added to a noun later leaves the hashes of old workloads alone."""
    values = ((name, getattr(noun, name), default) for name, default in defaults)
    return repr([(name, value) for name, value, default in values if value != default])


def _add(digest: hashlib._Hash, text: str) -> None:
    encoded = text.encode()
    digest.update(b"%d:" % len(encoded) + encoded)


def utility_curve(truth: Truth, scale: Normaliser) -> tuple[Floats, Floats]:
    """(shares, utility): best-so-far utility `clip((B − m)/(B − F), 0, 1)` at each point (P each), linear in between.

    `m` is the running minimum of the raw finite losses; before the first loss under chance the utility is 0.
    """
    losses = np.where(np.isfinite(truth.losses), truth.losses, np.inf)
    best = np.minimum(np.minimum.accumulate(losses), scale.chance)
    span = scale.chance - scale.best
    if span <= 0:  # nothing in the sweep ever beats chance
        return truth.shares, np.zeros(len(best))
    return truth.shares, np.clip((scale.chance - best) / span, 0.0, 1.0)


def until_end(truth: Truth, scale: Normaliser) -> tuple[Floats, Floats]:
    """`utility_curve` cut off where the job ends, with a last knot just there."""
    shares, utility = utility_curve(truth, scale)
    end = truth.end_fraction
    keep = shares < end
    return np.append(shares[keep], end), np.append(utility[keep], np.interp(end, shares, utility))


def clairvoyant_curves(workload: Workload) -> dict[str, tuple[Floats, Floats]]:
    """Per job (GPU-seconds of useful work on `min_gpus` of the slowest type, best-so-far utility) up to its end."""
    curves = {}
    for entry in workload.entries:
        shares, utility = until_end(entry.truth, workload.normaliser_of[entry.job.sweep])
        curves[entry.job.job_id] = (shares * entry.truth.duration_s * entry.job.min_gpus, utility)
    return curves


@dataclass(frozen=True, slots=True)
class Segment:
    """One attempt as the backend saw it, or a part of one between two changes of who shares its devices. It held
    `gpus` devices from `start_ns` to `end_ns`; its progress went linearly from share `share_from` at `work_ns` (after the
    restart cost) to `share_to` at `stop_ns`; `kept` is the share that the next attempt starts from (less than `share_to`
    when a node was lost). `charge` of its devices' time is its own: a device shared by two is charged to each at half."""

    row: int  # index into Workload.entries
    attempt: int
    gpus: int
    gpu_type: str
    start_ns: int
    work_ns: int
    stop_ns: int
    end_ns: int
    share_from: float
    share_to: float
    kept: float
    outcome: Outcome | Literal["running"]  # running: the record was taken before it ended, or the attempt went on
    charge: float = 1.0


@dataclass(frozen=True, slots=True)
class SharedTime:
    """Two jobs (rows of Workload.entries) on `gpus` devices together, and how fast each truly was there. `end`: how the
    first of them left, "" while the record was taken; `guest_left`: whether that was the guest."""

    host: int
    guest: int
    gpus: int
    start_ns: int
    end_ns: int
    host_speed: float
    guest_speed: float
    end: str
    guest_left: bool


@dataclass(frozen=True, slots=True)
class Record:
    """A whole simulated run, seen from outside the scheduler. `capacity`: (time_ns, GPU type, devices more or less).
    A job's segments stand in order of time."""

    segments: tuple[Segment, ...]
    capacity: tuple[tuple[int, str, int], ...]
    end_ns: tuple[int, ...]  # per entry: when it ended; −1 = it never did
    events: int
    shared: tuple[SharedTime, ...] = ()
