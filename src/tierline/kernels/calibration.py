"""What is known of a device: measured once by `tierline calibrate device`, kept as JSON in the user's data folder."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from tierline.core.errors import InvalidInput, StateUnusable, TierlineError
from tierline.kernels.datasheet import datasheet
from tierline.kernels.native import DeviceLimits

FigureSource = Literal["measured", "datasheet", "attributes", "unknown"]


@dataclass(frozen=True, slots=True)
class Figure:
    """One number and where it is from: measured here, a data sheet, computed from the driver's attributes; 0 = unknown."""

    value: float
    source: FigureSource


UNKNOWN = Figure(0.0, "unknown")


@dataclass(frozen=True, slots=True)
class CorunCell:
    """Probe kernel `probe` beside `beside`: how much longer it takes than alone (1 = nothing)."""

    probe: str
    beside: str
    slowdown: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """One device. `flops` are dense peaks per second by number format, `bytes_per_s` of device memory (read and written both
    counted), the others over the host link."""

    device: str
    is_simulated: bool
    driver: str
    compute_capability: str
    memory_bytes: int
    sms: int
    sm_clock_hz: int
    memory_clock_hz: int
    l2_bytes: int
    flops: Mapping[str, Figure]
    bytes_per_s: Figure
    host_to_device_bytes_per_s: Figure
    device_to_host_bytes_per_s: Figure
    corun: tuple[CorunCell, ...]
    measured_at_s: int  # Unix time

    @property
    def limits(self) -> DeviceLimits:
        """What the predictor takes: the fastest known number format."""
        fastest = max((figure.value for figure in self.flops.values()), default=0.0)
        return DeviceLimits(self.sms, fastest, self.bytes_per_s.value, self.memory_bytes)


def data_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Folder of calibrations: `$XDG_DATA_HOME/tierline/devices`; it need not exist."""
    xdg = environ.get("XDG_DATA_HOME")
    return (Path(xdg) if xdg else Path.home() / ".local" / "share") / "tierline" / "devices"


def path_of(device: str, is_simulated: bool) -> Path:
    """The file of a device by the name the driver gives it."""
    slug = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "device"
    return data_dir() / f"{'simulated-' if is_simulated else ''}{slug}.json"


def write_calibration(calibration: Calibration, path: Path) -> None:
    """Replace the file whole. Raises `StateUnusable`."""
    text = msgspec.json.format(msgspec.json.encode(calibration), indent=1)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(text + b"\n")
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise StateUnusable(f"'{path}' cannot be written: {error.strerror or error}.") from None


def read_calibration(path: Path) -> Calibration | None:
    """None where there is no such file. Raises `InvalidInput` when it holds something else."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Calibration)
    except FileNotFoundError:
        return None
    except (OSError, msgspec.DecodeError) as error:
        raise InvalidInput(f"'{path}' is no calibration ({error}): run `tierline calibrate device` again.") from None


def known_limits(device: int, fake: str = "") -> DeviceLimits | None:
    """Of GPU `device`, or of the simulated device `fake`: from its calibration, else its data sheet, else the driver's
    attributes; None where there is no driver."""
    name = fake or _nvml_name(device)
    calibration = read_calibration(path_of(name, is_simulated=bool(fake))) if name else None
    if calibration is not None:
        return calibration.limits
    return datasheet(name) or (None if fake else _attributes(device))


def _attributes(device: int) -> DeviceLimits | None:
    from tierline.kernels.cuda_driver import CudaDriver

    try:
        facts = CudaDriver(device).facts()
    except TierlineError:
        return None  # a program without CUDA runs all the same
    return DeviceLimits(facts.sms, facts.matrix_flops_per_s, facts.bytes_per_s, facts.memory_bytes)


def _nvml_name(device: int) -> str:
    """Quicker than to start the driver; "" where NVML knows no such device."""
    try:
        import pynvml

        pynvml.nvmlInit()
        try:
            return str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(device)))
        finally:
            pynvml.nvmlShutdown()
    except Exception:  # NVML has one exception class per code
        return ""
