"""Folders of one's own for regions and calibrations, and a native module that is made up."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest


def sibling(name: str) -> ModuleType:
    """A module of this folder."""
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable, name in (("XDG_RUNTIME_DIR", "run"), ("XDG_DATA_HOME", "data")):
        (tmp_path / name).mkdir(mode=0o700)
        monkeypatch.setenv(variable, str(tmp_path / name))
    return tmp_path


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """`tierline._native` for this test, where only regions' configurations matter."""
    module = sibling("made_up_native").native_module()
    monkeypatch.setitem(sys.modules, "tierline._native", module)
    return module
