"""What happened on a shared device, read from its region: who launched and waited, for whom, and both sums over time.

A region is one file that all programs under one arbiter map (native/core, region.hpp). It can be read while they run and
after all of them died. Reading takes no lock: numbers of a living region may be a launch apart from each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tierline.core.errors import InvalidInput, NotFound
from tierline.kernels.native import open_region

if TYPE_CHECKING:
    from tierline._native import Client, Kernel, Region, TraceEntry

PPM = 1_000_000
SIMULATED = "simulated-"
"""Names of regions on the fake driver begin so; whatever is shown of them says "simulated device"."""
_LEFT = 2
_TRACE_RING = 1 << 15  # kTrace of region.hpp


@dataclass(frozen=True, slots=True)
class WaitBucket:
    """So many waits of at least `from_ns` and less than twice that."""

    from_ns: int
    count: int


@dataclass(frozen=True, slots=True)
class ClientSeen:
    """One client, here or gone. `name` is as it was given, `label` tells it from others of that name. `predicted_busy_ns`
    is what its launches were predicted to take alone, `observed_busy_ns` the wall time its streams were busy, `corun_ns`
    the part of it with company, `starved_ns` the time in which it had nothing but launches that waited, `lost_ns` what
    company cost it, of high priority, as far as that was seen. `sm_util` and `bw_util` are what it uses now."""

    label: str
    name: str
    pid: int
    priority: str
    is_here: bool
    launches: int
    at_once: int
    waited: int
    forced: int
    bypassed: int
    overflowed: int
    excess: int
    wait_ns: int
    longest_wait_ns: int
    waits: tuple[WaitBucket, ...]
    memory_bytes: int
    memory_cap_bytes: int
    denied_allocations: int
    predicted_busy_ns: int
    observed_busy_ns: int
    corun_ns: int
    starved_ns: int
    lost_ns: int
    iteration_ns: int
    sm_util: float
    bw_util: float
    is_waiting: bool

    @property
    def speed(self) -> float | None:
        """Its speed relative to running alone, waits counted; None before anything was observed."""
        taken_ns = self.observed_busy_ns + self.starved_ns
        return self.predicted_busy_ns / taken_ns if taken_ns > 0 else None

    @property
    def corun_share(self) -> float:
        """The part of its busy time in which another client had work on the device."""
        return min(self.corun_ns / self.observed_busy_ns, 1.0) if self.observed_busy_ns > 0 else 0.0

    @property
    def mean_wait_ns(self) -> float:
        """Over the launches that waited."""
        return self.wait_ns / self.waited if self.waited else 0.0


def together(clients: Sequence[ClientSeen]) -> ClientSeen:
    """Several clients of one program (its processes) as one. `clients` is not empty."""
    first, *others = clients
    if not others:
        return first
    buckets: dict[int, int] = {}
    for bucket in (bucket for client in clients for bucket in client.waits):
        buckets[bucket.from_ns] = buckets.get(bucket.from_ns, 0) + bucket.count
    summed = {name: sum(getattr(client, name) for client in clients) for name in _SUMMED}
    return replace(
        first,
        is_here=any(client.is_here for client in clients),
        is_waiting=any(client.is_waiting for client in clients),
        longest_wait_ns=max(client.longest_wait_ns for client in clients),
        waits=tuple(WaitBucket(from_ns, count) for from_ns, count in sorted(buckets.items())),
        **summed,
    )


_SUMMED = (
    "launches",
    "at_once",
    "waited",
    "forced",
    "bypassed",
    "overflowed",
    "excess",
    "wait_ns",
    "memory_bytes",
    "memory_cap_bytes",
    "denied_allocations",
    "predicted_busy_ns",
    "observed_busy_ns",
    "corun_ns",
    "starved_ns",
    "lost_ns",
    "sm_util",
    "bw_util",
)


@dataclass(frozen=True, slots=True)
class KernelSeen:
    """One kernel key: what is known of it (utilisations are shares of the device's peak, alone), and what it did."""

    key: int
    name: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    registers: int
    smem_static_bytes: int
    smem_dynamic_bytes: int
    occupancy: int
    flops: float
    bytes: float
    sm_util: float
    bw_util: float
    sm_blocks: int
    duration_ns: int
    source: str
    bound: str
    samples: int
    launches: int
    waited: int
    wait_ns: int
    stretch: float | None  # seen over predicted duration of launches with company

    @property
    def time_ns(self) -> int:
        """What its launches take alone, all together."""
        return self.launches * self.duration_ns


@dataclass(frozen=True, slots=True)
class WaitedFor:
    waiter: str
    blamed: str
    wait_ns: int


@dataclass(frozen=True, slots=True)
class Change:
    """A change of the running set; `sm_util` and `bw_util` are both sums after it, `client` is a row of `clients`."""

    at_ns: int
    kind: Literal["waits", "admitted", "ended"]
    client: int
    stream: int
    key: int
    kernel: str
    reason: str
    sm_util: float
    bw_util: float


@dataclass(frozen=True, slots=True)
class RegionSeen:
    """A region at one moment. `alpha` and `beta` limit the sums of SM and bandwidth use; `peak_…` are the largest sums
    while two or more clients had work. `is_cut`: older changes had left the trace ring."""

    path: Path
    policy: str
    mode: str
    alpha: float
    beta: float
    sms: int
    flops_per_s: float
    bytes_per_s: float
    manager_pid: int
    peak_sm_util: float
    peak_bw_util: float
    sm_util: float
    bw_util: float
    repairs: int
    reaped: int
    clients: tuple[ClientSeen, ...]
    kernels: tuple[KernelSeen, ...]
    waits: tuple[WaitedFor, ...]
    changes: tuple[Change, ...]
    is_cut: bool

    @property
    def is_simulated(self) -> bool:
        return self.path.name.startswith(SIMULATED)

    @property
    def device(self) -> str:
        """How it is called to a reader: the region's name, with what it stands for."""
        name = self.path.stem
        return f"{name.removeprefix(SIMULATED)} (simulated device)" if self.is_simulated else name

    @property
    def by_time(self) -> list[KernelSeen]:
        """Kernels, the ones with the most time on the device first."""
        return sorted(self.kernels, key=lambda kernel: (-kernel.time_ns, -kernel.launches, kernel.name))


def read_region(path: Path, *, changes: bool = True) -> RegionSeen:
    """Read the region in the file `path`; `changes=False` leaves the trace out, which is most of the work.

    Raises `NotFound`, `InvalidInput` (no region of this build), `MissingNative`.
    """
    if not path.is_file():
        raise NotFound(f"there is no region at '{path}': `tierline run` makes one, `tierline kernels list` shows them.")
    try:
        return seen(open_region(path), path, changes=changes)
    except RuntimeError as error:
        raise InvalidInput(f"{str(error).rstrip('.')}.") from None


def seen(region: Region, path: Path, *, changes: bool = True) -> RegionSeen:
    """The native module's records as ours."""
    config, rows = region.config(), list(region.clients())
    kernels = tuple(_kernel(row) for row in region.kernels())
    labels = _labels(rows)
    trace = list(region.trace()) if changes else []
    names = {kernel.key: kernel.name for kernel in kernels}
    place = {row.slot: i for i, row in enumerate(rows)}
    return RegionSeen(
        path=path,
        policy=config.policy,
        mode=config.mode,
        alpha=config.alpha_ppm / PPM,
        beta=config.beta_ppm / PPM,
        sms=config.device.sms,
        flops_per_s=config.device.flops_per_s,
        bytes_per_s=config.device.bytes_per_s,
        manager_pid=region.manager_pid,
        peak_sm_util=region.peak_sm_ppm / PPM,
        peak_bw_util=region.peak_bw_ppm / PPM,
        sm_util=region.sm_ppm / PPM,
        bw_util=region.bw_ppm / PPM,
        repairs=region.repairs,
        reaped=region.reaped,
        clients=tuple(_client(row, labels[row.slot]) for row in rows),
        kernels=kernels,
        waits=tuple(
            WaitedFor(labels.get(row.client, "?"), labels.get(row.waited_for, "?"), row.wait_ns)
            for row in sorted(region.waits(), key=lambda row: -row.wait_ns)
        ),
        changes=tuple(_change(row, place, names) for row in trace),
        is_cut=len(trace) >= _TRACE_RING,
    )


def _labels(rows: list[Client]) -> dict[int, str]:
    """Slot -> label; two clients of one label are told apart by their process, or else by their slot."""
    counts: dict[str, int] = {}
    for row in rows:
        counts[row.label] = counts.get(row.label, 0) + 1
    pids = [(row.label, row.pid) for row in rows]
    return {
        row.slot: row.label
        if counts[row.label] == 1
        else f"{row.label}@{row.pid}"
        if pids.count((row.label, row.pid)) == 1
        else f"{row.label}#{row.slot}"
        for row in rows
    }


def _client(row: Client, label: str) -> ClientSeen:
    told = row.statistics
    return ClientSeen(
        label=label,
        name=row.label,
        pid=row.pid,
        priority=row.priority,
        is_here=row.state != _LEFT,
        launches=told.launches,
        at_once=told.at_once,
        waited=told.waited,
        forced=told.forced,
        bypassed=told.bypassed,
        overflowed=told.overflowed,
        excess=told.excess,
        wait_ns=told.wait_ns,
        longest_wait_ns=told.longest_wait_ns,
        waits=tuple(WaitBucket(1 << b, count) for b, count in enumerate(told.waits) if count),
        memory_bytes=row.memory_bytes,
        memory_cap_bytes=row.memory_cap_bytes,
        denied_allocations=told.denied_allocations,
        predicted_busy_ns=told.predicted_busy_ns,
        observed_busy_ns=told.observed_busy_ns,
        corun_ns=told.corun_ns,
        starved_ns=told.starved_ns,
        lost_ns=told.lost_ns,
        iteration_ns=row.iteration_ns,
        sm_util=row.sm_ppm / PPM,
        bw_util=row.bw_ppm / PPM,
        is_waiting=row.waiting > 0,
    )


def _kernel(row: Kernel) -> KernelSeen:
    return KernelSeen(
        key=row.key,
        name=row.name,
        grid=_triple(row.grid),
        block=_triple(row.block),
        registers=row.registers,
        smem_static_bytes=row.smem_static_bytes,
        smem_dynamic_bytes=row.smem_dynamic_bytes,
        occupancy=row.occupancy,
        flops=row.flops,
        bytes=row.bytes,
        sm_util=row.demand.sm_ppm / PPM,
        bw_util=row.demand.bw_ppm / PPM,
        sm_blocks=row.demand.sm_blocks,
        duration_ns=row.demand.duration_ns,
        source=row.source,
        bound=row.bound,
        samples=row.samples,
        launches=row.launches,
        waited=row.waited,
        wait_ns=row.wait_ns,
        stretch=row.corun_stretch / row.corun_observed if row.corun_observed else None,
    )


def _change(row: TraceEntry, place: dict[int, int], names: dict[int, str]) -> Change:
    return Change(
        at_ns=row.at_ns,
        kind=row.kind,
        client=place.get(row.client, -1),
        stream=row.stream,
        key=row.key,
        kernel=names.get(row.key, "?"),
        reason=row.reason,
        sm_util=row.sm_ppm / PPM,
        bw_util=row.bw_ppm / PPM,
    )


def _triple(values: Sequence[int]) -> tuple[int, int, int]:
    return values[0], values[1], values[2]
