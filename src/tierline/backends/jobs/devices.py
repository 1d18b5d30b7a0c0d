"""Which devices this machine has, and which of them processes of others use. GPUs by NVML, else declared CPU slots."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from tierline.backends.jobs.processes import ancestors, environment
from tierline.core.errors import InvalidInput
from tierline.core.nouns import Device


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as NVML shows it; `index` counts in the order of the PCI bus."""

    index: int
    name: str
    uuid: str
    memory_bytes: int


class Nvml(Protocol):
    """The two questions we have for NVML."""

    def gpus(self) -> Sequence[Gpu]: ...

    def compute_pids(self, index: int) -> Sequence[int]:
        """Processes with a CUDA context on the GPU."""
        ...


class SystemNvml:
    """NVML itself (package nvidia-ml-py). Raises `OSError` when there is no driver."""

    def __init__(self) -> None:
        import pynvml

        self._lib: Any = pynvml
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise OSError(f"NVML: {error}") from None

    def gpus(self) -> Sequence[Gpu]:
        lib = self._lib
        found = []
        for index in range(lib.nvmlDeviceGetCount()):
            handle = lib.nvmlDeviceGetHandleByIndex(index)
            memory = int(lib.nvmlDeviceGetMemoryInfo(handle).total)
            found.append(Gpu(index, _text(lib.nvmlDeviceGetName(handle)), _text(lib.nvmlDeviceGetUUID(handle)), memory))
        return found

    def compute_pids(self, index: int) -> Sequence[int]:
        lib = self._lib
        try:
            return [int(p.pid) for p in lib.nvmlDeviceGetComputeRunningProcesses(lib.nvmlDeviceGetHandleByIndex(index))]
        except lib.NVMLError:
            return []


def open_nvml() -> Nvml | None:
    """NVML, or None on a machine without an NVIDIA driver."""
    try:
        return SystemNvml()
    except (OSError, ImportError):
        return None


def discover(slots: int | None, nvml: Nvml | None = None) -> tuple[Device, ...]:
    """The devices to offer: `slots` CPU slots when declared, else the GPUs that NVML shows and CUDA_VISIBLE_DEVICES of
    this process leaves, else one CPU slot per core. Ids are `gpu0`, `gpu1` (PCI order) or `cpu0`, `cpu1`.

    Raises `InvalidInput` for fewer than one slot.
    """
    if slots is not None and slots < 1:
        raise InvalidInput(f"{slots} slots were given; at least 1 is needed.")
    if slots is None and nvml is not None:
        gpus = _visible(nvml.gpus(), os.environ.get("CUDA_VISIBLE_DEVICES"))
        if gpus:
            return tuple(Device(f"gpu{gpu.index}", gpu_type(gpu.name), gpu.memory_bytes) for gpu in gpus)
    count = slots if slots is not None else len(os.sched_getaffinity(0))
    return tuple(Device(f"cpu{index}", "cpu") for index in range(count))


def gpu_type(name: str) -> str:
    """A short type from NVML's product name.

    >>> [gpu_type(n) for n in ("NVIDIA H200", "Tesla V100-SXM2-16GB", "NVIDIA GeForce RTX 3090", "H100 80GB HBM3")]
    ['h200', 'v100', 'rtx3090', 'h100']
    """
    words = re.split(r"[\s\-_]+", name.lower())
    noise = re.compile(r"nvidia|tesla|geforce|quadro|generation|\d+gb|hbm\w*|pcie?|sxm\d*|nvl|laptop|gpu")
    return "".join(word for word in words if not noise.fullmatch(word)) or "gpu"


def device_indices(device_ids: Sequence[str]) -> tuple[list[str], bool]:
    """(indices as in the ids, True when they are GPUs)."""
    return [re.sub(r"^.*?(\d+)$", r"\1", device_id) for device_id in device_ids], any(
        re.search(r"gpu\d+$", device_id) for device_id in device_ids
    )


def foreign_processes(
    nvml: Nvml, devices: Sequence[Device], root: Path, supervisors: Set[int], busy: Collection[str]
) -> Mapping[str, tuple[int, ...]]:
    """device id -> pids on it that belong to none of our jobs.

    Ours is what descends from one of `supervisors` or carries a report file under `root` in its environment. In a
    container NVML may give pids that our /proc does not know: on a device that a job of ours holds (`busy`) those are
    taken as its own.
    """
    ours = os.fsencode(f"TIERLINE_REPORT_FILE={root}/")
    found = {}
    for device in devices:
        indices, is_gpu = device_indices((device.device_id,))
        if not is_gpu:
            continue
        foreign = []
        for pid in nvml.compute_pids(int(indices[0])):
            if not os.path.exists(f"/proc/{pid}"):
                if device.device_id not in busy:
                    foreign.append(pid)
            elif not any(entry.startswith(ours) for entry in environment(pid)) and supervisors.isdisjoint(
                ancestors(pid)
            ):
                foreign.append(pid)
        if foreign:
            found[device.device_id] = tuple(sorted(foreign))
    return found


def describe(pid: int) -> str:
    """`process 123 (python)`, for the reason of a blocked device."""
    try:
        return f"process {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"process {pid}"


def _visible(gpus: Sequence[Gpu], setting: str | None) -> list[Gpu]:
    if setting is None:
        return list(gpus)
    names = [name.strip() for name in setting.split(",") if name.strip()]
    return [gpu for gpu in gpus if any(n == str(gpu.index) or (len(n) > 4 and gpu.uuid.startswith(n)) for n in names)]


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
