"""The job scheduler's whole state as plain JSON-able data, and back bit for bit.

A snapshot spares a restarted daemon the fold over all events; the fold over the rest is the same code as replay.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from tierline.core.nouns import Node, Sweep
from tierline.schedulers.job_record import JobRecord

if TYPE_CHECKING:
    from tierline.schedulers.jobs import JobScheduler


def dump(scheduler: JobScheduler) -> dict[str, Any]:
    """Everything that a later decision may depend on."""
    s = scheduler
    return {
        "nodes": msgspec.to_builtins(list(s._pool.nodes.values())),
        "gpu_types": list(s._pool.gpu_types),
        "blocked": dict(s._pool.blocked),
        "free": s._pool.order(),
        "jobs": [msgspec.to_builtins(record) for record in s._jobs.values()],
        "table_ids": list(s._table.ids),
        "table": {
            name: base64.b64encode(column.tobytes()).decode() for name, column in s._table.dump_columns().items()
        },
        "sweeps": msgspec.to_builtins(list(s._sweeps.values())),
        "users": list(s._users),
        "sweep_index": list(s._sweep_index),
        "shares": dict(s._shares),
        "dependents": {k: list(v) for k, v in s._dependents.items()},
        "deadlines": dict(s._deadlines),
        "timers": dict(s._timers),
        "price": dict(s._price),
        "round": s._round,
        "queued": s._queued,
        "elastic": s._elastic,
        "weights_stale": s._weights_stale,
        "bank": s._bank.dump(),
        "policy": {f.name: msgspec.to_builtins(getattr(s.policy, f.name)) for f in _memory(s.policy)},
    }


def load(scheduler: JobScheduler, state: dict[str, Any]) -> None:
    """Into a fresh scheduler with the same policy and options."""
    s = scheduler
    for node in msgspec.convert(state["nodes"], list[Node]):
        s._pool.join(node)
    s._pool.gpu_types[:] = state["gpu_types"]
    s._pool.blocked.update(state["blocked"])
    records = [msgspec.convert(row, JobRecord) for row in state["jobs"]]
    s._jobs.update((record.job.job_id, record) for record in records)
    for record in records:
        s._pool.seize(record.job.job_id, record.device_ids)
    s._pool.restore_order(state["free"])
    s._users.update((name, i) for i, name in enumerate(state["users"]))
    s._sweep_index.update((name, i) for i, name in enumerate(state["sweep_index"]))
    s._sweeps.update((sweep.sweep_id, sweep) for sweep in msgspec.convert(state["sweeps"], list[Sweep]))
    s._table.set_type_count(len(s._pool.gpu_types))
    for job_id in state["table_ids"]:
        job = s._jobs[job_id].job
        s._table.append(job, 0, s._users[job.user], 0, s._type_speed(job))
    columns = {name: base64.b64decode(text) for name, text in state["table"].items()}
    s._table.load_columns({name: np.frombuffer(raw, np.uint8) for name, raw in columns.items()})
    for name in ("shares", "dependents", "deadlines", "timers", "price"):
        getattr(s, f"_{name}").update(state[name])
    s._round, s._queued, s._elastic = state["round"], state["queued"], state["elastic"]
    s._weights_stale = state["weights_stale"]
    s._bank.load(state["bank"])
    for f in _memory(s.policy):
        setattr(s.policy, f.name, msgspec.convert(state["policy"][f.name], type(getattr(s.policy, f.name))))


def _memory(policy: object) -> list[dataclasses.Field[Any]]:
    """A policy's memory: its dataclass fields that are not options."""
    return [f for f in dataclasses.fields(policy) if not f.init] if dataclasses.is_dataclass(policy) else []
