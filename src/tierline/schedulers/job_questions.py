"""How the job tier's state looks to people and to backends. Reads only."""

from __future__ import annotations

import dataclasses

import numpy as np

from tierline.core.nouns import Phase
from tierline.core.status import ClusterStatus, DeviceStatus, JobStatus
from tierline.schedulers.job_record import JobRecord
from tierline.schedulers.job_sharing import discount_ns
from tierline.schedulers.job_state import JobTierState


def job_status(state: JobTierState, record: JobRecord, now_ns: int) -> JobStatus:
    """One job now, with what it bid in the newest round; a queued one is told what it would have taken."""
    if record.row < 0:
        return record.status(now_ns, record.utility, record.reason)
    status = record.status(now_ns, state.bank.utility(record.row), record.reason)
    if partners := state.pool.partners(record.job.job_id, record.device_ids):
        status = dataclasses.replace(
            status,
            shares_with=tuple(partners),
            speed=state.speed_beside(record),
            attained_gpu_s=status.attained_gpu_s - discount_ns(state, record, now_ns) / 1e9,
        )
    bid = float(state.table.floats("bid")[record.row])
    if np.isnan(bid):
        return status
    price = max(state.price.values(), default=0.0)
    if record.phase is not Phase.QUEUED:
        return dataclasses.replace(status, density=bid, price=price)
    reason = f"waits: bids {bid:.3g} utility per GPU-second, the clearing price is {price:.3g}"
    return dataclasses.replace(status, density=bid, price=price, reason=reason)


def cluster_status(state: JobTierState, policy: str, quantum_s: float, now_ns: int) -> ClusterStatus:
    owner, guest, blocked = state.pool.owner, state.pool.guest, state.pool.blocked
    n = len(state.table)
    return ClusterStatus(
        now_ns=now_ns,
        policy=policy,
        quantum_s=quantum_s,
        devices=tuple(
            DeviceStatus(
                device_id=device.device_id,
                node=node,
                gpu_type=device.gpu_type,
                memory_bytes=device.memory_bytes,
                job_id=owner.get(device.device_id, ""),
                blocked=blocked.get(device.device_id, ""),
                guest=guest.get(device.device_id, ""),
            )
            for device, node in state.pool.devices()
        ),
        price=tuple(state.price.items()),
        live_jobs=int(state.table.bools("live")[:n].sum()),
        queued_jobs=state.queued,
        running_jobs=int(state.table.bools("running")[:n].sum()),
    )
