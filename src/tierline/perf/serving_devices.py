"""Accelerators that stage times are predicted for: constants of their data sheets and of the measured tables."""

from __future__ import annotations

from dataclasses import dataclass

from tierline.core.errors import UnknownName


@dataclass(frozen=True, slots=True)
class ServingDevice:
    """`folder`: what aiconfigurator calls it. Bytes and bytes per second; `link_bytes_per_s` between two devices of a node,
    one way. `encodes`: whether the tables hold an encoder's attention. `kernel_s`: the least that a memory-bound kernel
    takes, `memory_share`: the part of the bandwidth that such kernels reach (both as aiconfigurator has them)."""

    name: str
    folder: str
    memory_bytes: int
    bytes_per_s: float
    link_bytes_per_s: float
    encodes: bool = True
    kernel_s: float = 3e-6
    memory_share: float = 0.8
    reserved_bytes: int = 3758096384  # what an engine holds beside weights and KV


# Source of the figures: ai-dynamo/aiconfigurator, systems/*.yaml, Apache-2.0; a test compares them where the files are.
DEVICES = {
    "h100": ServingDevice("h100", "h100_sxm", 85899345920, 3.35e12, 450e9),
    "h200": ServingDevice("h200", "h200_sxm", 151397597184, 4.8e12, 450e9),
    "l40s": ServingDevice("l40s", "l40s", 48305799168, 864e9, 32e9),
    "a100": ServingDevice("a100", "a100_sxm", 85899345920, 2.039e12, 300e9, encodes=False),
}


def device_named(name: str) -> ServingDevice:
    """Raises `UnknownName`."""
    if name not in DEVICES:
        raise UnknownName("device", name, DEVICES)
    return DEVICES[name]
