"""Two jobs on one device: what the scheduler keeps and checks of it. Who shall share is the packing stage's to propose.

Hard limits: a device has two users at most, both `shareable`, and their declared memory fits. The job that was there
first is the *host*, the one that joined it the *guest*. Whoever leaves leaves the other running; a guest that is left
alone owns the device from then on. A shared device is charged to each of the two at half, so that the GPU time attained
by all jobs adds up to the time the devices were held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from tierline.core.nouns import Phase
from tierline.core.views import Ints, SharingView
from tierline.perf.interference import fits
from tierline.schedulers.job_record import JobRecord
from tierline.schedulers.job_state import JobTierState


def sharing_view(s: JobTierState) -> SharingView:
    """What the packing stage sees, rows as in the table."""
    n, table, pool = len(s.table), s.table, s.pool
    open_gpus = (table.ints("gpus")[:n] - table.ints("shared")[:n]) * (
        table.bools("shareable")[:n] & table.bools("running")[:n] & table.bools("eligible")[:n]
    )
    for device_id in pool.blocked:
        if device_id in pool.owner and device_id not in pool.guest:
            row = s.jobs[pool.owner[device_id]].row
            open_gpus[row] = max(open_gpus[row] - 1, 0)
    counts: dict[tuple[int, int], int] = {}
    for device_id, guest in pool.guest.items():
        pair = s.jobs[pool.owner[device_id]].row, s.jobs[guest].row
        counts[pair] = counts.get(pair, 0) + 1
    return SharingView(
        job_type=_frozen(table.ints("job_type")[:n]),
        speed=s.interference.speeds(pool.gpu_types),
        open_gpus=open_gpus,
        shareable=table.bools("shareable")[:n].copy(),
        pairs=np.array([(*pair, count) for pair, count in sorted(counts.items())], dtype=np.int64).reshape(-1, 3),
        memory_bytes=_frozen(table.ints("memory_bytes")[:n]),
        device_memory_bytes=np.array([pool.memory_bytes(t) for t in pool.gpu_types], dtype=np.int64),
    )


def choose_devices(
    s: JobTierState, record: JobRecord, hosts: Sequence[JobRecord], gpus: int, gpu_type: str
) -> tuple[tuple[str, ...], str]:
    """(devices of the hosts for the job to share, why not): one of the two is empty."""
    chosen: list[str] = []
    for host in hosts:
        name = host.job.job_id
        if host is record:
            return (), "it cannot share with itself"
        if host.phase not in (Phase.STARTING, Phase.RUNNING):
            return (), f"{name} holds no devices ({host.phase.name.lower()})"
        if not (record.job.shareable and host.job.shareable):
            return (), f"{(record if host.job.shareable else host).job.job_id} keeps its devices to itself"
        if s.pool.gpu_types[s.table.ints("gpu_type")[host.row]] != gpu_type:
            return (), f"{name} holds no {gpu_type} devices"
        if not fits((record.job.gpu_memory_bytes, host.job.gpu_memory_bytes), s.pool.memory_bytes(gpu_type)):
            return (), f"its memory and that of {name} do not fit on one device"
        chosen += s.pool.shareable(host.device_ids)[: gpus - len(chosen)]
    if len(chosen) < gpus:
        return (), f"{gpus} devices of {', '.join(h.job.job_id for h in hosts)} are not to be had"
    return tuple(chosen), ""


def recount(s: JobTierState, now_ns: int, job_ids: Iterable[str]) -> None:
    """Settle the account of these jobs up to now, and count anew how many of their devices are shared."""
    for job_id in job_ids:
        record = s.jobs[job_id]
        if record.row < 0:
            continue
        off = discount_ns(s, record, now_ns)
        record.attained_gpu_ns -= off
        s.table.ints("attained_gpu_ns")[record.row] -= off
        s.table.ints("shared")[record.row] = sum(s.pool.partners(job_id, record.device_ids).values())
        s.table.ints("shared_ns")[record.row] = now_ns


def discount_ns(s: JobTierState, record: JobRecord, now_ns: int) -> int:
    """What is not charged to the job since its account was settled: half of the time on devices that it shares."""
    if record.row < 0:
        return 0
    shared = int(s.table.ints("shared")[record.row])
    return shared * (now_ns - int(s.table.ints("shared_ns")[record.row])) // 2 if shared else 0


def see(s: JobTierState, record: JobRecord, with_jobs: Sequence[str], speed: float) -> None:
    """A slowdown was seen. Of several partners the one believed to slow the job most is held to account."""
    types = s.table.ints("job_type")
    others = [s.jobs[j].row for j in with_jobs if j in s.jobs and s.jobs[j].row >= 0]
    mine, known = int(types[record.row]), [int(types[row]) for row in others if types[row] >= 0]
    if mine < 0 or not known:
        return
    gpu_type = s.pool.gpu_types[s.table.ints("gpu_type")[record.row]]
    worst = min(known, key=lambda other: np.nan_to_num(s.interference.speed(gpu_type, mine, other), nan=1.0))
    s.interference.see(gpu_type, mine, worst, speed)


def _frozen(column: Ints) -> Ints:
    window = column[:]
    window.flags.writeable = False
    return window
