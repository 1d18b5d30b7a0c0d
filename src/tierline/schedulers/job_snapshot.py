"""The job scheduler's whole state as plain JSON-able data, and back bit for bit.

A snapshot spares a restarted daemon the fold over all events; the fold over the rest is the same code as replay.
"""

from __future__ import annotations

import base64
import dataclasses
from typing import Any

import msgspec
import numpy as np

from tierline.core.contracts import JobPolicy
from tierline.core.nouns import Node, Sweep
from tierline.schedulers.job_record import JobRecord
from tierline.schedulers.job_state import JobTierState


def dump(s: JobTierState, policy: JobPolicy) -> dict[str, Any]:
    """Everything that a later decision may depend on."""
    return {
        "nodes": msgspec.to_builtins(list(s.pool.nodes.values())),
        "gpu_types": list(s.pool.gpu_types),
        "blocked": dict(s.pool.blocked),
        "guests": dict(s.pool.guest),
        "free": s.pool.order(),
        "jobs": [msgspec.to_builtins(record) for record in s.jobs.values()],
        "table_ids": list(s.table.ids),
        "table": {name: base64.b64encode(column.tobytes()).decode() for name, column in s.table.dump_columns().items()},
        "sweeps": msgspec.to_builtins(list(s.sweeps.values())),
        "users": list(s.users),
        "sweep_index": list(s.sweep_index),
        "shares": dict(s.shares),
        "dependents": {k: list(v) for k, v in s.dependents.items()},
        "deadlines": dict(s.deadlines),
        "timers": dict(s.timers),
        "price": dict(s.price),
        "round": s.round,
        "queued": s.queued,
        "elastic": s.elastic,
        "weights_stale": s.weights_stale,
        "bank": s.bank.dump(),
        "interference": s.interference.dump(),
        "policy": {f.name: msgspec.to_builtins(getattr(policy, f.name)) for f in _memory(policy)},
    }


def load(s: JobTierState, policy: JobPolicy, state: dict[str, Any]) -> None:
    """Into a fresh state; the policy is of the same class and options."""
    for node in msgspec.convert(state["nodes"], list[Node]):
        s.pool.join(node)
    s.pool.restore_types(state["gpu_types"])
    s.pool.blocked.update(state["blocked"])
    records = [msgspec.convert(row, JobRecord) for row in state["jobs"]]
    s.jobs.update((record.job.job_id, record) for record in records)
    guests: dict[str, str] = state.get("guests", {})  # records of versions before sharing have none
    for record in records:
        job_id = record.job.job_id
        s.pool.seize(job_id, tuple(d for d in record.device_ids if guests.get(d) != job_id))
    s.pool.guest.update(guests)
    s.pool.restore_order(state["free"])
    s.users.update((name, i) for i, name in enumerate(state["users"]))
    s.sweep_index.update((name, i) for i, name in enumerate(state["sweep_index"]))
    s.sweeps.update((sweep.sweep_id, sweep) for sweep in msgspec.convert(state["sweeps"], list[Sweep]))
    if "interference" in state:
        s.interference.load(state["interference"])
    s.table.set_types(len(s.pool.gpu_types), ())
    for job_id in state["table_ids"]:
        job = s.jobs[job_id].job
        s.table.append(job, 0, s.users[job.user], 0, s.type_speed(job), s.interference.index(job))
    columns = {name: base64.b64decode(text) for name, text in state["table"].items()}
    s.table.load_columns({name: np.frombuffer(raw, np.uint8) for name, raw in columns.items()})
    for name in ("shares", "dependents", "deadlines", "timers", "price"):
        getattr(s, name).update(state[name])
    s.round, s.queued, s.elastic = state["round"], state["queued"], state["elastic"]
    s.weights_stale = state["weights_stale"]
    s.bank.load(state["bank"])
    for f in _memory(policy):
        setattr(policy, f.name, msgspec.convert(state["policy"][f.name], type(getattr(policy, f.name))))


def _memory(policy: object) -> list[dataclasses.Field[Any]]:
    """A policy's memory: its dataclass fields that are not options."""
    return [f for f in dataclasses.fields(policy) if not f.init] if dataclasses.is_dataclass(policy) else []
