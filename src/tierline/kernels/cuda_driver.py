"""The CUDA driver by ctypes, as far as calibration needs it: what a device is, copies and launches timed by events.

Works on the real libcuda.so.1 and on the fake one; no CUDA toolkit is needed. Times are the device's own (events), so on the
fake driver they are virtual.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from tierline.core.errors import InvalidInput, NotFound, TierlineError

# CUdevice_attribute
_L2_BYTES, _SMS, _CLOCK_KHZ, _MEMORY_CLOCK_KHZ, _BUS_BITS = 38, 16, 13, 36, 37
_MAJOR, _MINOR = 75, 76
_NON_BLOCKING = 1
# Dense 16-bit operations per SM and clock, by compute capability (NVIDIA's tuning guides); 8.6 and 8.9 have half of 8.0's.
_MATRIX_OPERATIONS = {"7.0": 1024, "7.5": 1024, "8.0": 2048, "8.6": 1024, "8.9": 1024, "9.0": 4096, "10.0": 8192}


class DriverFailed(TierlineError):
    """A call of the driver failed; the message names it and the driver's own word for it."""


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """What the driver tells of a device without running anything on it."""

    name: str
    driver: str
    compute_capability: str
    memory_bytes: int
    sms: int
    sm_clock_hz: int
    memory_clock_hz: int
    memory_bus_bits: int
    l2_bytes: int

    @property
    def bytes_per_s(self) -> float:
        """Of device memory by its clock and its width, twice a clock; 0 where the driver does not tell."""
        return 2.0 * self.memory_clock_hz * self.memory_bus_bits / 8

    @property
    def matrix_flops_per_s(self) -> float:
        """16-bit matrix products by SMs, clock and operations an SM and clock; 0 for a compute capability not known here."""
        return float(_MATRIX_OPERATIONS.get(self.compute_capability, 0) * self.sms * self.sm_clock_hz)

    @property
    def fp32_flops_per_s(self) -> float:
        """By SMs, clock and units an SM: 64 up to compute capability 8.0, 128 from then on; an estimate."""
        major, _, minor = self.compute_capability.partition(".")
        units = 128 if (int(major), int(minor)) > (8, 0) else 64
        return 2.0 * units * self.sms * self.sm_clock_hz


class CudaDriver:
    """One device, with a context on it inside `with`. Raises `NotFound`, `DriverFailed`, `InvalidInput`."""

    def __init__(self, device: int, library: str = "libcuda.so.1") -> None:
        try:
            self._library = ctypes.CDLL(library)
        except OSError as error:
            raise NotFound(
                f"no CUDA driver is found here ({error}); `--fake h200` shows it on a simulated device."
            ) from None
        self.call("cuInit", 0)
        count = ctypes.c_int()
        self.call("cuDeviceGetCount", ctypes.byref(count))
        if not 0 <= device < count.value:
            raise InvalidInput(f"--device {device}: the driver knows {count.value} devices, counted from 0.")
        self._device = ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(self._device), device)

    def __enter__(self) -> CudaDriver:
        context = ctypes.c_void_p()
        self.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        self.call("cuCtxSetCurrent", context)
        return self

    def __exit__(self, *_: object) -> None:
        self._library.cuDevicePrimaryCtxRelease_v2(self._device)

    def call(self, name: str, *arguments: object) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            told = ctypes.c_char_p()
            self._library.cuGetErrorName(status, ctypes.byref(told))
            raise DriverFailed(f"the CUDA driver's {name} failed: {(told.value or b'unknown').decode()} ({status}).")

    def facts(self) -> DeviceFacts:
        name = ctypes.create_string_buffer(256)
        self.call("cuDeviceGetName", name, len(name), self._device)
        total, version = ctypes.c_size_t(), ctypes.c_int()
        self.call("cuDeviceTotalMem_v2", ctypes.byref(total), self._device)
        self.call("cuDriverGetVersion", ctypes.byref(version))
        return DeviceFacts(
            name.value.decode(errors="replace"),
            f"{version.value // 1000}.{version.value % 1000 // 10}",
            f"{self._attribute(_MAJOR)}.{self._attribute(_MINOR)}",
            total.value,
            self._attribute(_SMS),
            self._attribute(_CLOCK_KHZ) * 1000,
            self._attribute(_MEMORY_CLOCK_KHZ) * 1000,
            self._attribute(_BUS_BITS),
            self._attribute(_L2_BYTES),
        )

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        # An attribute that this driver does not know is no error here: 0 stands for "not told".
        self._library.cuDeviceGetAttribute(ctypes.byref(value), number, self._device)
        return value.value

    @contextmanager
    def device_memory(self, size_bytes: int) -> Iterator[ctypes.c_uint64]:
        pointer = ctypes.c_uint64()
        self.call("cuMemAlloc_v2", ctypes.byref(pointer), ctypes.c_size_t(size_bytes))
        try:
            yield pointer
        finally:
            self.call("cuMemFree_v2", pointer)

    @contextmanager
    def host_memory(self, size_bytes: int) -> Iterator[ctypes.c_void_p]:
        """Pinned."""
        pointer = ctypes.c_void_p()
        self.call("cuMemHostAlloc", ctypes.byref(pointer), ctypes.c_size_t(size_bytes), 0)
        try:
            yield pointer
        finally:
            self.call("cuMemFreeHost", pointer)

    @contextmanager
    def streams(self, count: int) -> Iterator[list[ctypes.c_void_p]]:
        """Streams that do not wait for the legacy default stream."""
        made: list[ctypes.c_void_p] = []
        try:
            for _ in range(count):
                stream = ctypes.c_void_p()
                self.call("cuStreamCreate", ctypes.byref(stream), _NON_BLOCKING)
                made.append(stream)
            yield made
        finally:
            for stream in made:
                self.call("cuStreamDestroy_v2", stream)

    def seconds(self, launch: Callable[[], object], stream: ctypes.c_void_p) -> float:
        """The device's time from before to behind what `launch` puts on `stream`."""
        events = [ctypes.c_void_p(), ctypes.c_void_p()]
        for event in events:
            self.call("cuEventCreate", ctypes.byref(event), 0)
        try:
            self.call("cuEventRecord", events[0], stream)
            launch()
            self.call("cuEventRecord", events[1], stream)
            self.call("cuEventSynchronize", events[1])
            elapsed = ctypes.c_float()
            self.call("cuEventElapsedTime", ctypes.byref(elapsed), *events)
        finally:
            for event in events:
                self.call("cuEventDestroy_v2", event)
        return elapsed.value / 1e3

    def module(self, image: bytes) -> ctypes.c_void_p:
        module = ctypes.c_void_p()
        self.call("cuModuleLoadData", ctypes.byref(module), image)
        return module

    def function(self, module: ctypes.c_void_p, name: str) -> ctypes.c_void_p:
        """A kernel of a module, by its name."""
        function = ctypes.c_void_p()
        self.call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
        return function

    def launch(
        self, function: ctypes.c_void_p, grid: Sequence[int], block: Sequence[int], stream: ctypes.c_void_p
    ) -> None:
        """Without arguments."""
        self.call("cuLaunchKernel", function, *grid, *block, 0, stream, None, None)

    def synchronize(self) -> None:
        self.call("cuCtxSynchronize")
