"""The native module `tierline._native` as the rest of this package uses it: the one place that loads it.

Its types stand in `_native.pyi`. Records are named field by field as in native/core/include/tierline, enumerations are the
words of the core's `name_of` functions ("interference", "strict", "best-effort", "roofline", "sm_limit").
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tierline.core.errors import MissingNative

if TYPE_CHECKING:
    from tierline._native import Region


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


def load() -> Any:
    """The module. Raises `MissingNative` where this installation has none."""
    try:
        return importlib.import_module("tierline._native")
    except ModuleNotFoundError:
        raise MissingNative("the module tierline._native") from None
    except ImportError as error:  # it is there and cannot be loaded
        raise MissingNative(f"a usable module tierline._native ({error})") from None


def open_region(path: Path) -> Region:
    """Map the region read-only. Raises `RuntimeError` with the core's sentence, or `MissingNative`."""
    region: Region = load().Region.open(str(path))
    return region


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
