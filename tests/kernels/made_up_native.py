"""A native module that is made up: regions keep their configuration and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType, SimpleNamespace

LIMITS = {"sms": 132, "flops_per_s": 0.0, "bytes_per_s": 0.0, "memory_bytes": 0}


class Region:
    manager_pid = 77
    sm_ppm = bw_ppm = peak_sm_ppm = peak_bw_ppm = repairs = reaped = 0

    def __init__(self, path: str) -> None:
        try:
            self._config = SimpleNamespace(**json.loads(Path(path).read_text()))
        except (OSError, ValueError) as error:
            raise RuntimeError(
                f"cannot use the region {path}: it is not a region of this version of Tierline"
            ) from error
        self._config.device = SimpleNamespace(**self._config.device)

    @classmethod
    def open(cls, path: str) -> Region:
        return cls(path)

    @classmethod
    def create(cls, path: str, config: SimpleNamespace) -> Region:
        Path(path).write_text(json.dumps(vars(config) | {"device": vars(config.device)}))
        return cls(path)

    def config(self) -> SimpleNamespace:
        return self._config

    def clients(self) -> list[object]:
        return []

    kernels = waits = trace = clients


def native_module() -> ModuleType:
    module = ModuleType("tierline._native")
    parts = {
        "Region": Region,
        "REGION_VERSION": 1,
        "DeviceLimits": lambda: SimpleNamespace(**LIMITS),
        "Config": lambda: SimpleNamespace(
            policy="interference", mode="latency", alpha_ppm=950_000, beta_ppm=950_000, device=SimpleNamespace(**LIMITS)
        ),
    }
    for name, part in parts.items():
        setattr(module, name, part)
    return module
