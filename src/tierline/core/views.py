"""What a job policy sees, and what it answers. Columns, not rows: a policy over 10,000 jobs is a few numpy calls.

A view holds what has happened and what can be predicted from it. It holds no future: no true curve, duration or end.
All arrays are read-only and row-aligned with `JobColumns.job_id`; J is the number of live jobs (not ended), T the
number of GPU types. Row order is order of submission.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class JobColumns:
    """The live jobs.

    Units: `*_ns` nanoseconds on the run's clock, `attained_gpu_ns` GPU-nanoseconds received, `gpus` devices held now
    (0 when not running), `gpu_type` index into `ClusterView.gpu_types` of the devices held (−1 when none).
    `eligible`: may run now (queued, or running and not asked to leave). `type_speed` (J × T): speed on each type
    relative to the slowest, 0.0 where the job cannot run. `speedup`: None (one size), or an array of length
    max_gpus + 1 with the speed at n GPUs relative to min_gpus, concave above it. `step`: newest reported step, −1 before
    the first report. `restarts`: attempts after the first. `weight`: 1, or the share of the user or sweep divided over
    its live jobs. Rows of jobs that have just ended may linger, neither eligible nor running.
    """

    job_id: tuple[str, ...]
    eligible: Bools
    running: Bools
    preemptible: Bools
    arrival_ns: Ints
    queued_ns: Ints  # since when it waits (its arrival, or its last preemption)
    started_ns: Ints  # start of the present attempt; 0 when not running
    attained_gpu_ns: Ints
    min_gpus: Ints
    max_gpus: Ints
    gpus: Ints
    gpu_type: Ints
    priority: Ints
    deadline_ns: Ints
    user: Ints
    sweep: Ints
    weight: Floats
    step: Ints
    total_steps: Ints
    reports: Ints
    restarts: Ints
    type_speed: Floats
    speedup: tuple[Floats | None, ...]

    def __len__(self) -> int:
        return len(self.job_id)


@dataclass(frozen=True, slots=True)
class CurveForecast:
    """What fitted learning curves say (`perf/curves.py`), per live job.

    `loss_drop`: expected drop of the loss within the next quantum on min_gpus, divided by the largest drop the job has
    shown; 1.0 (optimistic) before three reports. `remaining_s`: seconds on min_gpus until the curve is flat or the
    declared steps are done. `asymptote`: expected final loss, NaN before three reports.
    """

    loss_drop: Floats
    remaining_s: Floats
    asymptote: Floats


@dataclass(frozen=True, slots=True)
class Forecast:
    """Predictions from reports alone (`perf/forecast.py`), per live job. Utility has no unit (0 = chance, 1 = target).

    `utility` so far. `density`: best future average slope, utility per GPU-second on min_gpus, the restart in it for a
    job that would have to load its checkpoint. `gain`: the same per report interval
    instead of per GPU-second, restarts free. `unexplored`: fewer
    than two reports and little service, so nothing is known yet. `step_s`: seconds a step, 0.0 = unknown. `curves` is
    None unless the policy declares `needs_curves`.
    """

    utility: Floats
    density: Floats
    gain: Floats
    unexplored: Bools
    step_s: Floats
    curves: CurveForecast | None


@dataclass(frozen=True, slots=True)
class SharingView:
    """Who uses devices together, and how fast types of jobs run beside each other (`perf/interference.py`).

    `job_type` (J): index into the axes of `speed`, −1 = nothing is known of it, so nothing is predicted. `speed` (T × K × K):
    `speed[t, a, b]` of job type a beside b on GPU type t, relative to alone; NaN = not known. `open_gpus` (J): devices the
    job holds that a second job may use too. `pairs` (P × 3): (host row, guest row, devices they share); a host was on the
    devices first. `memory_bytes` (J): declared per device; `device_memory_bytes` (T): least of the type, 0 = not known.
    """

    job_type: Ints
    speed: Floats
    open_gpus: Ints
    shareable: Bools
    pairs: Ints
    memory_bytes: Ints
    device_memory_bytes: Ints


@dataclass(frozen=True, slots=True)
class ClusterView:
    """The cluster at one moment.

    `free` and `total` (T): devices per type that are free, and that are usable at all (blocked ones are not).
    `may_preempt` is False in a fill round (between quanta), when only free devices may be given out.
    `forecast` is None unless the policy declares `needs_forecast`, `sharing` unless sharing is switched on.
    """

    now_ns: int
    quantum_ns: int
    restart_ns: int
    may_preempt: bool
    gpu_types: tuple[str, ...]
    free: Ints
    total: Ints
    jobs: JobColumns
    forecast: Forecast | None
    users: tuple[str, ...]
    sweeps: tuple[str, ...]
    sharing: SharingView | None = None


@dataclass(frozen=True, slots=True)
class Grant:
    """A proposal: job in row `row` shall hold `gpus` devices of type index `gpu_type` (0 = leave its devices). `onto`:
    rows of the jobs whose devices it shall share, in the order in which theirs are taken; () = devices of its own."""

    row: int
    gpus: int
    gpu_type: int
    reason: str
    density: float = 0.0
    onto: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Drop:
    """A proposal: end the job in row `row` for good (an early stop by the policy, as in ASHA's stopping variant)."""

    row: int
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """A policy's answer: only what shall change. Order matters: grants are tried first to last.

    `price`: the clearing price λ per GPU type, utility per GPU-second: density of the best unit refused, 0.0 if none
    was. `density` (J): what each job bid, for `tierline why`; None for policies without bids. `refused`: rows that asked
    in vain, best first; read where devices are shared (None = order of submission).
    """

    grants: tuple[Grant, ...] = ()
    drops: tuple[Drop, ...] = ()
    price: Mapping[str, float] | None = None
    density: Floats | None = None
    refused: Ints | None = None


EMPTY_PLAN = Plan()
