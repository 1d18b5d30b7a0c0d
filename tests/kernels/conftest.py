"""Folders of one's own for regions and calibrations, and a native module that is made up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable, name in (("XDG_RUNTIME_DIR", "run"), ("XDG_DATA_HOME", "data")):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


class FakeRegion:
    """Keeps a configuration in its file, and nothing else."""

    manager_pid = 77

    def __init__(self, path: str) -> None:
        try:
            self._config = SimpleNamespace(**json.loads(Path(path).read_text()))
        except (OSError, ValueError) as error:
            raise RuntimeError(
                f"cannot use the region {path}: it is not a region of this version of Tierline"
            ) from error
        self._config.device = SimpleNamespace(**self._config.device)

    open = classmethod(lambda cls, path: cls(path))

    @classmethod
    def create(cls, path: str, config: SimpleNamespace) -> FakeRegion:
        record = vars(config) | {"device": vars(config.device)}
        Path(path).write_text(json.dumps(record))
        return cls(path)

    def config(self) -> SimpleNamespace:
        return self._config


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`tierline._native` for this test, where only regions' configurations matter."""
    module = ModuleType("tierline._native")
    limits = {"sms": 132, "flops_per_s": 0.0, "bytes_per_s": 0.0, "memory_bytes": 0}
    module.Region = FakeRegion  # type: ignore[attr-defined]
    module.DeviceLimits = lambda: SimpleNamespace(**limits)  # type: ignore[attr-defined]
    module.Config = lambda: SimpleNamespace(  # type: ignore[attr-defined]
        policy="interference", mode="latency", alpha_ppm=950_000, beta_ppm=950_000, device=SimpleNamespace(**limits)
    )
    monkeypatch.setitem(sys.modules, "tierline._native", module)
    return module
