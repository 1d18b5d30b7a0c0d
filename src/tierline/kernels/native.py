"""The native module `tierline._native` as the rest of this package sees it: one place that loads it, and its shape.

The records are named field by field as in native/core/include/tierline (region.hpp, types.hpp). Enumerations arrive as
the words of the core's `name_of` functions ("interference", "strict", "best-effort", "roofline", "sm_limit").
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from tierline.core.errors import MissingNative


class NativeDemand(Protocol):
    """What a kernel uses alone; shares in parts per million of the device's peak."""

    sm_ppm: int
    bw_ppm: int
    sm_blocks: int
    duration_ns: int


@dataclass(frozen=True, slots=True)
class DeviceLimits:
    """The device as the predictor knows it; 0 = unknown."""

    sms: int
    flops_per_s: float
    bytes_per_s: float
    memory_bytes: int = 0

    @property
    def spec(self) -> str:
        """As TIERLINE_DEVICE_SPEC takes it."""
        return f"{self.sms}:{self.flops_per_s:.6g}:{self.bytes_per_s:.6g}"


class NativeConfig(Protocol):
    policy: str
    mode: str
    alpha_ppm: int
    beta_ppm: int
    device: DeviceLimits


class NativeStatistics(Protocol):
    launches: int
    at_once: int
    waited: int
    forced: int
    bypassed: int
    overflowed: int
    excess: int
    denied_bytes_calls: int
    wait_ns: int
    longest_wait_ns: int
    predicted_busy_ns: int
    observed_busy_ns: int
    corun_ns: int
    waits: Sequence[int]  # bucket b counts waits of [2^b, 2^(b+1)) ns


class NativeClient(Protocol):
    """One slot that is or was taken. `slot` is its index, `state` 1 joined or 2 left."""

    slot: int
    label: str
    state: int
    pid: int
    priority: str
    waiting: int
    memory_cap_bytes: int
    memory_bytes: int
    sm_ppm: int
    bw_ppm: int
    iteration_ns: int
    statistics: NativeStatistics


class NativeKernel(Protocol):
    """One row of the profile table."""

    key: int
    name: str
    grid: Sequence[int]
    block: Sequence[int]
    registers: int
    smem_static_bytes: int
    smem_dynamic_bytes: int
    occupancy: int
    flops: float
    bytes: float
    demand: NativeDemand
    source: str
    bound: str
    samples: int
    launches: int
    waited: int
    wait_ns: int
    observed_ns: int
    observed: int
    corun_observed: int
    corun_stretch: float


class NativeWait(Protocol):
    """Client slot `client` waited so long for client slot `waited_for`; only pairs with a wait are listed."""

    client: int
    waited_for: int
    wait_ns: int


class NativeTrace(Protocol):
    """A change of the running set. `kind`: waits, admitted or ended; the sums are those after it."""

    at_ns: int
    key: int
    client: int
    stream: int
    sm_ppm: int
    bw_ppm: int
    kind: Literal["waits", "admitted", "ended"]
    reason: str


class NativeRegion(Protocol):
    """`Region.open(path)` maps a region read-only; `Region.create(path, config)` makes it, or opens one that is there
    already. Both raise `RuntimeError` with one sentence. The trace is oldest first."""

    manager_pid: int
    created_ns: int
    sm_ppm: int
    bw_ppm: int
    peak_sm_ppm: int
    peak_bw_ppm: int
    clients_joined: int
    waiting: int
    repairs: int
    reaped: int

    def config(self) -> NativeConfig: ...
    def clients(self) -> Sequence[NativeClient]: ...
    def kernels(self) -> Sequence[NativeKernel]: ...
    def waits(self) -> Sequence[NativeWait]: ...
    def trace(self) -> Sequence[NativeTrace]: ...


def load() -> Any:
    """The module `tierline._native`. Raises `MissingNative` where this installation has none."""
    try:
        return importlib.import_module("tierline._native")
    except ModuleNotFoundError:
        raise MissingNative("the module tierline._native") from None
    except ImportError as error:  # it is there and cannot be loaded
        raise MissingNative(f"a usable module tierline._native ({error})") from None


def open_region(path: Path) -> NativeRegion:
    """Map the region read-only. Raises `RuntimeError` with the core's sentence, or `MissingNative`."""
    return cast(NativeRegion, load().Region.open(str(path)))


def make_region(path: Path, policy: str, mode: str, device: DeviceLimits | None) -> None:
    """Make the region's file. Raises `RuntimeError` with the core's sentence, or `MissingNative`."""
    module = load()
    config = module.Config()
    config.policy, config.mode = policy, mode
    if device is not None:
        limits = module.DeviceLimits()
        limits.sms, limits.flops_per_s, limits.bytes_per_s = device.sms, device.flops_per_s, device.bytes_per_s
        limits.memory_bytes = device.memory_bytes
        config.device = limits
    module.Region.create(str(path), config)
