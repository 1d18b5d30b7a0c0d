"""The native build from outside: its C++ tests plain and under sanitizers, where its files lie, and how an installation goes
where nothing can be built.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A declaration in native/**/CMakeLists.txt: tierline_test(NAME SOURCES ...
DECLARED = sorted(
    name
    for file in (ROOT / "native").rglob("CMakeLists.txt")
    for name in re.findall(r"^\s*tierline_test\((\w+)", file.read_text(), re.MULTILINE)
)
SANITIZER_OPTIONS = {
    "TSAN_OPTIONS": "halt_on_error=1 die_after_fork=0",
    "ASAN_OPTIONS": "detect_leaks=1",
    "UBSAN_OPTIONS": "print_stacktrace=1",
}


def ctest(build: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    tool = shutil.which("ctest", path=f"{os.environ['PATH']}:{Path(sys.executable).parent}")
    assert tool is not None, "cmake has built the tests, yet ctest is not beside it"
    command = [tool, "--test-dir", str(build), "--output-on-failure", *arguments]
    return subprocess.run(command, env={**os.environ, **SANITIZER_OPTIONS}, capture_output=True, text=True, timeout=600)


def registered(build: Path) -> list[str]:
    listing = json.loads(ctest(build, "--show-only=json-v1").stdout)
    return sorted(test["name"] for test in listing["tests"])


@pytest.mark.parametrize("name", DECLARED)
def test_a_cpp_test_passes(native_build, name: str) -> None:
    outcome = ctest(native_build(), "-R", f"^{name}$", "--no-tests=error")
    assert outcome.returncode == 0, outcome.stdout


def test_every_registered_cpp_test_is_among_them(native_build) -> None:
    assert DECLARED
    assert registered(native_build()) == DECLARED


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_the_cpp_tests_pass_under_a_sanitizer(native_build, sanitizer: str) -> None:
    build = native_build(sanitizer)
    outcome = ctest(build, "--parallel", "2", "--no-tests=error")
    assert outcome.returncode == 0, outcome.stdout


def test_a_failed_check_fails_its_program(native_build, tmp_path: Path) -> None:
    build = native_build()
    compiler = re.search(r"^CMAKE_CXX_COMPILER:\w+=(.*)$", (build / "CMakeCache.txt").read_text(), re.MULTILINE)
    assert compiler is not None
    source, program = tmp_path / "failing.cpp", tmp_path / "failing"
    source.write_text('#include "check.hpp"\nint main() { CHECK(true); CHECK_EQ(1 + 1, 3); return check_result(); }\n')
    command = [compiler.group(1), "-std=c++17", "-I", str(ROOT / "native/tests"), str(source), "-o", str(program)]
    subprocess.run(command, check=True, timeout=120)
    outcome = subprocess.run([program], capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 1
    assert "expected 1 + 1 == 3; found 2 and 3" in outcome.stderr
    assert "2 checks, 1 failed" in outcome.stderr


def test_module_and_libraries_lie_together(native_build) -> None:
    native_build()
    folder = Path(str(importlib.import_module("tierline._native").__file__)).parent / "_lib"
    assert (folder / "libtierline_interpose.so").is_file()
    assert (folder / "fake/libcuda.so.1").is_file()


def test_the_preload_library_brings_its_cpp_library_along(interposer: Path) -> None:
    if shutil.which("readelf") is None:
        pytest.skip("readelf (binutils) is not on PATH")
    listing = subprocess.run(["readelf", "-d", interposer], capture_output=True, text=True, check=True).stdout
    needed = re.findall(r"\(NEEDED\).*\[(.*)\]", listing)
    assert "libc.so.6" in needed
    assert not [name for name in needed if name.startswith(("libstdc++", "libc++", "libgcc", "libcuda"))]


@pytest.fixture
def path_without_compiler(tmp_path: Path) -> str:
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("sh", "dirname", "basename", "uname", "env", "cat", "rm", "mkdir", "awk", "cmake", "ninja", "make"):
        if (found := shutil.which(tool)) is not None:
            (folder / tool).symlink_to(found)
    return str(folder)


def test_scripts_native_says_that_no_compiler_is_there(path_without_compiler: str) -> None:
    environment = {key: value for key, value in os.environ.items() if key not in ("CXX", "PYTHON")}
    environment["PATH"] = path_without_compiler
    shell = shutil.which("sh")
    assert shell is not None
    command = [shell, "scripts/native"]
    outcome = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 3
    assert "no C++ compiler (g++ or clang++) is on PATH" in outcome.stderr


@pytest.mark.parametrize("arguments", [["--sanitize", "memory"], ["--sanitize"], ["--fast"]])
def test_scripts_native_tells_what_it_takes(arguments: list[str]) -> None:
    outcome = subprocess.run(["sh", "scripts/native", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert outcome.returncode == 2
    assert "thread" in outcome.stderr


@pytest.mark.skipif(
    shutil.which("cmake") is None or not (shutil.which("ninja") or shutil.which("make")),
    reason="cmake, or ninja and make, are not on PATH: a real installation fetches them, a test does not",
)
@pytest.mark.parametrize("environment", [{}, {"TIERLINE_NATIVE": "0"}])
def test_a_wheel_without_the_kernel_tier_is_made_where_no_compiler_is(
    path_without_compiler: str, environment: dict[str, str], tmp_path: Path
) -> None:
    pytest.importorskip("scikit_build_core")
    names = wheel(tmp_path, {"PATH": path_without_compiler, **environment})
    assert "tierline/__init__.py" in names
    assert [name for name in names if name.endswith("METADATA")] == ["tierline-0.1.0.dist-info/METADATA"]
    assert not [name for name in names if "/_lib/" in name or name.endswith(".so")]


def wheel(folder: Path, environment: dict[str, str]) -> list[str]:
    """The files of a wheel of this checkout, which is made without pip: pip would look for the tools in the network."""
    code = "import sys, scikit_build_core.build as b; b.build_wheel(sys.argv[1])"
    clean = {key: value for key, value in os.environ.items() if key not in ("CXX", "CMAKE_GENERATOR")}
    command = [sys.executable, "-c", code, str(folder)]
    outcome = subprocess.run(
        command, cwd=ROOT, env={**clean, **environment}, capture_output=True, text=True, timeout=120
    )
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    (path,) = folder.glob("*.whl")
    assert path.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(path) as archive:
        return archive.namelist()
