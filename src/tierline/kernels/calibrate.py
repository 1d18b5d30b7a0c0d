"""Measure a device: copies by the driver alone, matrix products and pairs of probe kernels by PyTorch where it is installed.

What cannot be measured here comes from the data sheet or from the driver's attributes, and says so. On the fake driver the
probes are made for it; figures of a simulated device are labelled as such.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import time
from collections.abc import Iterator, Mapping

from tierline.kernels import torch_device
from tierline.kernels.calibration import UNKNOWN, Calibration, CorunCell, Figure
from tierline.kernels.cuda_driver import CudaDriver, DeviceFacts
from tierline.kernels.datasheet import datasheet
from tierline.kernels.environment import fake_environment, fake_folder
from tierline.kernels.profile import Triple

COPY_BYTES = 256 << 20
LINK_BYTES = 64 << 20
REPEATS = 5
PROBE_LAUNCHES = 20
FAKE_IMAGE = b"""FAKECUDA 1
kernel probe_compute block=256 regs=64 unit=tensor flops=1e8 bytes=5e4
kernel probe_memory block=256 regs=32 flops=5e4 bytes=1.6e4
kernel probe_small block=128 regs=32 flops=1e4 bytes=6e3
"""
"""The probes as the fake driver loads them; work is a block's."""
# Bound class -> grid and block.
FAKE_PROBES: Mapping[str, tuple[Triple, Triple]] = {
    "compute": ((1056, 1, 1), (256, 1, 1)),
    "memory": ((16384, 1, 1), (256, 1, 1)),
    "small": ((32, 1, 1), (128, 1, 1)),
}


def calibrate_gpu(device: int) -> Calibration:
    """Of GPU `device`. Takes about ten seconds with PyTorch, one without. Raises `NotFound` (no driver), `DriverFailed`."""
    with CudaDriver(device) as driver:
        facts = driver.facts()
        bandwidth, to_device, to_host = _copies(driver)
    flops = _known_flops(facts)
    corun: tuple[CorunCell, ...] = ()
    if torch_device.is_installed():
        flops |= {name: Figure(value, "measured") for name, value in torch_device.peak_flops_per_s(device).items()}
        corun = tuple(CorunCell(*pair, slowdown) for pair, slowdown in torch_device.corun_slowdowns(device).items())
    return _calibration(facts, flops, bandwidth, to_device, to_host, corun, is_simulated=False)


def calibrate_fake(name: str) -> Calibration:
    """Of the simulated device `name`, in virtual time. Raises `MissingNative`, `UnknownName`, `DriverFailed`."""
    settings = fake_environment(name) | {"FAKECUDA_CLOCK": "virtual"}  # read once, when the library is loaded
    with _set(settings), CudaDriver(0, str(fake_folder() / "libcuda.so.1")) as driver:
        facts = driver.facts()
        bandwidth, to_device, to_host = _copies(driver)
        corun = _fake_corun(driver)
    return _calibration(facts, _known_flops(facts), bandwidth, to_device, to_host, corun, is_simulated=True, name=name)


@contextlib.contextmanager
def _set(settings: Mapping[str, str]) -> Iterator[None]:
    """Variables of this process's environment, where a library that is loaded meanwhile finds them."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _calibration(
    facts: DeviceFacts,
    flops: Mapping[str, Figure],
    bandwidth: Figure,
    to_device: Figure,
    to_host: Figure,
    corun: tuple[CorunCell, ...],
    *,
    is_simulated: bool,
    name: str = "",
) -> Calibration:
    return Calibration(
        device=name or facts.name,
        is_simulated=is_simulated,
        driver=facts.driver,
        compute_capability=facts.compute_capability,
        memory_bytes=facts.memory_bytes,
        sms=facts.sms,
        sm_clock_hz=facts.sm_clock_hz,
        memory_clock_hz=facts.memory_clock_hz,
        l2_bytes=facts.l2_bytes,
        flops=flops,
        bytes_per_s=bandwidth,
        host_to_device_bytes_per_s=to_device,
        device_to_host_bytes_per_s=to_host,
        corun=corun,
        measured_at_s=int(time.time()),
    )


def _known_flops(facts: DeviceFacts) -> dict[str, Figure]:
    """Before anything is measured: the data sheet's 16-bit peak, and 32 bits by units and clock."""
    sheet = datasheet(facts.name)
    known = {"16-bit": Figure(sheet.flops_per_s, "datasheet")} if sheet else {}
    if facts.fp32_flops_per_s:
        known["fp32"] = Figure(facts.fp32_flops_per_s, "attributes")
    return known


def _copies(driver: CudaDriver) -> tuple[Figure, Figure, Figure]:
    """Bytes per second within device memory (read and written), from pinned host memory to the device, and back."""
    with driver.streams(1) as (stream,):
        with driver.device_memory(COPY_BYTES) as source, driver.device_memory(COPY_BYTES) as target:
            within = min(
                driver.seconds(lambda: driver.call("cuMemcpyDtoDAsync_v2", target, source, COPY_BYTES, stream), stream)
                for _ in range(REPEATS)
            )
        with driver.device_memory(LINK_BYTES) as there, driver.host_memory(LINK_BYTES) as here:
            up = min(
                driver.seconds(lambda: driver.call("cuMemcpyHtoDAsync_v2", there, here, LINK_BYTES, stream), stream)
                for _ in range(REPEATS)
            )
            down = min(
                driver.seconds(lambda: driver.call("cuMemcpyDtoHAsync_v2", here, there, LINK_BYTES, stream), stream)
                for _ in range(REPEATS)
            )
    return _rate(2 * COPY_BYTES, within), _rate(LINK_BYTES, up), _rate(LINK_BYTES, down)


def _rate(size_bytes: int, seconds: float) -> Figure:
    return Figure(size_bytes / seconds, "measured") if seconds > 0 else UNKNOWN


def _fake_corun(driver: CudaDriver) -> tuple[CorunCell, ...]:
    """Each probe beside each: the time of its launches over that alone, with company before, beside and behind them."""
    module = driver.module(FAKE_IMAGE)
    kernels = {bound: driver.function(module, f"probe_{bound}") for bound in FAKE_PROBES}
    found = []
    with driver.streams(2) as (stream, beside):

        def launch(bound: str, count: int, where: object) -> None:
            grid, block = FAKE_PROBES[bound]
            for _ in range(count):
                driver.launch(kernels[bound], grid, block, where)  # type: ignore[arg-type]

        alone = {bound: driver.seconds(lambda b=bound: launch(b, PROBE_LAUNCHES, stream), stream) for bound in kernels}  # type: ignore[misc]
        for bound, other in itertools.product(kernels, kernels):
            company = int(4 * PROBE_LAUNCHES * alone[bound] / alone[other]) + 1

            def together(bound: str = bound, other: str = other, company: int = company) -> None:
                launch(other, company, beside)
                launch(bound, PROBE_LAUNCHES, stream)

            taken = driver.seconds(together, stream)
            driver.synchronize()
            found.append(CorunCell(bound, other, taken / alone[bound]))
    return tuple(found)
