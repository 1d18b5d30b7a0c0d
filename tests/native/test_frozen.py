"""The fake device's ground truth is the frozen one, and a change to it would be seen."""

import importlib.util
import shutil
from pathlib import Path
from types import ModuleType

import pytest

FAKE = Path(__file__).resolve().parents[2] / "native" / "fake"


@pytest.fixture(scope="module")
def freeze() -> ModuleType:
    spec = importlib.util.spec_from_file_location("freeze", FAKE / "freeze.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_truth_is_as_frozen(freeze: ModuleType) -> None:
    assert freeze.changes(FAKE) == []


def test_changes_are_seen(freeze: ModuleType, tmp_path: Path) -> None:
    shutil.copytree(FAKE / "engine", tmp_path / "engine")
    shutil.copy(FAKE / "FROZEN", tmp_path / "FROZEN")
    assert freeze.changes(tmp_path) == []
    pairs = tmp_path / "engine" / "src" / "programs.cpp"
    pairs.write_text(pairs.read_text() + "// one more line\n")
    (tmp_path / "engine" / "src" / "more.cpp").write_text("int more;\n")
    (tmp_path / "engine" / "src" / "rates.cpp").unlink()
    assert freeze.changes(tmp_path) == ["all", "engine/src/more.cpp", "engine/src/programs.cpp", "engine/src/rates.cpp"]


def test_the_truth_includes_nothing_of_the_core() -> None:
    sources = [path for path in (FAKE / "engine").rglob("*") if path.suffix in {".hpp", ".cpp"}]
    includes = [line for path in sources for line in path.read_text().splitlines() if line.startswith("#include")]
    assert includes
    foreign = [line for line in includes if '"tierline/' in line and '"tierline/fake/' not in line]
    assert foreign == []
