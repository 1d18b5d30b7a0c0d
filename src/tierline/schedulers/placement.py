"""Which device belongs to whom, and which free ones a job gets.

Invariant: a device is in exactly one of three states: free (listed under its node's free count), owned by one job, or
unusable (its node is lost, or processes of others are on it and nobody of ours). `owner` is the one truth about use.
An owned device may have a `guest`, a second job that uses it too; never a third. When its owner leaves, the guest owns it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from tierline.core.nouns import Device, Job, Node
from tierline.core.views import Ints


@dataclass(slots=True)
class _Rack:
    """The free devices of one GPU type: node -> ids, and nodes by how many they have free (dicts keep their order)."""

    free: dict[str, list[str]] = field(default_factory=dict)
    by_count: dict[int, dict[str, None]] = field(default_factory=dict)
    free_count: int = 0
    installed: int = 0
    total: int = 0
    memory_bytes: int = 0

    def set_free(self, node: str, ids: list[str]) -> None:
        old = self.free.get(node)
        if old:
            del self.by_count[len(old)][node]
            self.free_count -= len(old)
        self.free[node] = ids
        if ids:
            self.by_count.setdefault(len(ids), {})[node] = None
            self.free_count += len(ids)


class DevicePool:
    """Devices of all nodes by GPU type. Placement: the fewest nodes, and among them the fullest that still fits
    (best fit), so that whole nodes stay free for large jobs. Deterministic."""

    def __init__(self) -> None:
        self.gpu_types: list[str] = []
        self.nodes: dict[str, Node] = {}
        self.blocked: dict[str, str] = {}
        self.owner: dict[str, str] = {}
        self.guest: dict[str, str] = {}
        self._device: dict[str, tuple[Device, str]] = {}
        self._racks: dict[str, _Rack] = {}

    def join(self, node: Node) -> None:
        """Add a node, or replace what is known of it; devices in use by jobs stay theirs if they still exist."""
        if node.name in self.nodes:
            self.leave(node.name)
        self.nodes[node.name] = node
        for device in node.devices:
            if device.gpu_type not in self._racks:
                self.gpu_types.append(device.gpu_type)
                self._racks[device.gpu_type] = _Rack()
            self._device[device.device_id] = (device, node.name)
        self._recount(node.name)

    def leave(self, name: str) -> tuple[str, ...]:
        """Remove a node; returns the jobs that held devices on it (they still own them until `release`)."""
        node = self.nodes.pop(name, None)
        if node is None:
            return ()
        jobs: dict[str, None] = {}
        for device in node.devices:
            del self._device[device.device_id]
            self.blocked.pop(device.device_id, None)
            for user in (self.owner.get(device.device_id), self.guest.get(device.device_id)):
                if user is not None:
                    jobs[user] = None
        for gpu_type in {d.gpu_type for d in node.devices}:
            self._racks[gpu_type].set_free(name, [])
            self._recount_total(gpu_type)
        return tuple(jobs)

    def block(self, node_name: str, device_ids: tuple[str, ...], reason: str) -> None:
        """Mark exactly these devices of the node as used by others."""
        node = self.nodes.get(node_name)
        if node is None:
            return
        for device in node.devices:
            if device.device_id in device_ids:
                self.blocked[device.device_id] = reason
            else:
                self.blocked.pop(device.device_id, None)
        self._recount(node_name)

    def place(self, job_id: str, gpu_type: str, gpus: int) -> tuple[str, ...] | None:
        """Give `gpus` free devices of the type to the job; None, and nothing changed, when there are not enough."""
        rack = self._racks.get(gpu_type)
        if rack is None or rack.free_count < gpus:
            return None
        taken: list[str] = []
        while len(taken) < gpus:
            need = gpus - len(taken)
            counts = [c for c, nodes in rack.by_count.items() if nodes]
            fitting = [c for c in counts if c >= need]
            count = min(fitting) if fitting else max(counts)
            node = next(iter(rack.by_count[count]))
            ids = rack.free[node]
            take = min(need, len(ids))
            taken += ids[:take]
            rack.set_free(node, ids[take:])
        for device_id in taken:
            self.owner[device_id] = job_id
        return tuple(taken)

    def share(self, job_id: str, device_ids: tuple[str, ...]) -> None:
        """Let the job use these devices, each owned by another and without a guest so far, as their guest."""
        assert all(d in self.owner and d not in self.guest for d in device_ids)
        self.guest.update(dict.fromkeys(device_ids, job_id))

    def shareable(self, device_ids: tuple[str, ...]) -> tuple[str, ...]:
        """Those of a job's devices that a second one may use too."""
        return tuple(d for d in device_ids if d not in self.guest and d not in self.blocked and d in self._device)

    def partners(self, job_id: str, device_ids: tuple[str, ...]) -> dict[str, int]:
        """Jobs that use devices of this one too -> how many."""
        found: dict[str, int] = {}
        for device_id in device_ids if self.guest else ():
            if device_id in self.guest:
                other = self.guest[device_id] if self.owner[device_id] == job_id else self.owner[device_id]
                found[other] = found.get(other, 0) + 1
        return found

    def is_guest(self, job_id: str, device_ids: tuple[str, ...]) -> bool:
        return bool(self.guest) and any(self.guest.get(d) == job_id for d in device_ids)

    def release(self, job_id: str, device_ids: tuple[str, ...]) -> None:
        for device_id in device_ids:
            if self.guest.get(device_id) == job_id:
                del self.guest[device_id]
                continue
            if (heir := self.guest.pop(device_id, None)) is not None:
                self.owner[device_id] = heir
                continue
            self.owner.pop(device_id, None)
            entry = self._device.get(device_id)
            if entry is None or device_id in self.blocked:
                continue
            device, node = entry
            rack = self._racks[device.gpu_type]
            rack.set_free(node, [*rack.free.get(node, ()), device_id])

    def seize(self, job_id: str, device_ids: tuple[str, ...]) -> None:
        """Set these devices as owned (used when a snapshot is loaded)."""
        for device_id in device_ids:
            self.owner[device_id] = job_id
        for node in {self._device[d][1] for d in device_ids if d in self._device}:
            self._recount(node)

    def order(self) -> dict[str, list[list[str]]]:
        """Per type the nodes with free devices in the order of their counts' lists, each with its free ids in order."""
        return {
            gpu_type: [[node, *rack.free[node]] for nodes in rack.by_count.values() for node in nodes]
            for gpu_type, rack in self._racks.items()
        }

    def restore_types(self, gpu_types: list[str]) -> None:
        """Set the types and their order as a snapshot has them, also those whose nodes are all gone."""
        self.gpu_types[:] = gpu_types
        for gpu_type in gpu_types:
            self._racks.setdefault(gpu_type, _Rack())

    def restore_order(self, order: dict[str, list[list[str]]]) -> None:
        """Set the order of nodes and free devices as a snapshot has it: it decides ties in `place`."""
        for gpu_type, nodes in order.items():
            rack = self._racks[gpu_type]
            for node, *_ in nodes:
                rack.set_free(node, [])
            for node, *ids in nodes:
                rack.set_free(node, ids)

    def node_of(self, device_id: str) -> str | None:
        entry = self._device.get(device_id)
        return entry[1] if entry else None

    def free(self) -> Ints:
        """Free devices per type (T)."""
        return np.array([self._racks[t].free_count for t in self.gpu_types], dtype=np.int64)

    @property
    def free_count(self) -> int:
        return sum(rack.free_count for rack in self._racks.values())

    def total(self) -> Ints:
        """Usable devices per type (T): those of present nodes that others do not block."""
        return np.array([self._racks[t].total for t in self.gpu_types], dtype=np.int64)

    def installed(self, gpu_type: str) -> int:
        """Devices of the type on present nodes, blocked ones too."""
        return self._racks[gpu_type].installed

    def memory_bytes(self, gpu_type: str) -> int:
        """Least memory among the type's devices; 0 = unknown, then nothing is refused for its sake."""
        return self._racks[gpu_type].memory_bytes

    def suits(self, job: Job, gpu_type: str) -> bool:
        """Whether the job may run on the type: it did not ask for others, and memory suffices where it is known."""
        memory_bytes = self.memory_bytes(gpu_type)
        return (not job.gpu_types or gpu_type in job.gpu_types) and (
            memory_bytes == 0 or memory_bytes >= job.gpu_memory_bytes
        )

    def devices(self) -> list[tuple[Device, str]]:
        return list(self._device.values())

    def _recount(self, node_name: str) -> None:
        node = self.nodes[node_name]
        for gpu_type in {d.gpu_type: None for d in node.devices}:
            free = [
                d.device_id
                for d in node.devices
                if d.gpu_type == gpu_type and d.device_id not in self.owner and d.device_id not in self.blocked
            ]
            self._racks[gpu_type].set_free(node_name, free)
            self._recount_total(gpu_type)

    def _recount_total(self, gpu_type: str) -> None:
        present = [device for device, _ in self._device.values() if device.gpu_type == gpu_type]
        usable = [device for device in present if device.device_id not in self.blocked]
        rack = self._racks[gpu_type]
        rack.installed = len(present)
        rack.total = len(usable)
        rack.memory_bytes = min((d.memory_bytes for d in usable), default=0)
