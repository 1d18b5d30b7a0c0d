"""What native tests are given: builds of `native/`, made by `scripts/native` once a session and kept under build/ between
sessions. Where there is no compiler they are skipped, with the reason that the script gives; a build that fails fails them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LACKING = 3  # scripts/native's exit code where the machine has not what it takes
BUILD_LIMIT_S = 900.0

NativeBuild = Callable[..., Path]


@pytest.fixture(scope="session")
def native_build() -> NativeBuild:
    """`native_build(sanitize=None)`: the folder of the build with the C++ tests in it: programs in `bin/`, libraries in
    `package/` as they are installed. `sanitize` is None, "thread" or "address".
    """
    outcomes: dict[str | None, subprocess.CompletedProcess[str]] = {}

    def build(sanitize: str | None = None) -> Path:
        if sanitize not in outcomes:
            chosen = ["--tests"] if sanitize is None else ["--sanitize", sanitize]
            outcomes[sanitize] = subprocess.run(
                ["sh", "scripts/native", *chosen],
                cwd=ROOT,
                env={**os.environ, "PYTHON": sys.executable},
                capture_output=True,
                text=True,
                timeout=BUILD_LIMIT_S,
            )
        outcome = outcomes[sanitize]
        if outcome.returncode == LACKING:
            pytest.skip(outcome.stderr.strip().splitlines()[-1])
        if outcome.returncode != 0:
            pytest.fail(outcome.stderr, pytrace=False)
        return ROOT / "build" / ("native" if sanitize is None else f"native-{sanitize}")

    return build


@pytest.fixture(scope="session")
def native_bin(native_build: NativeBuild) -> Callable[[str], Path]:
    """`native_bin(name)`: a program that native/ builds: a test, or one of the fake driver's."""

    def find(name: str) -> Path:
        build = native_build()
        for folder in (build / "bin", build / "package/tierline/_lib/fake"):
            if (folder / name).is_file():
                return folder / name
        there = sorted(path.name for path in (build / "bin").glob("*"))
        raise AssertionError(f"native/ builds no program '{name}'; in bin/ there are {', '.join(there)}")

    return find


@pytest.fixture(scope="session")
def interposer(native_build: NativeBuild) -> Path:
    """libtierline_interpose.so, as a package holds it."""
    return _installed(native_build, "libtierline_interpose.so")


@pytest.fixture(scope="session")
def fake_driver(native_build: NativeBuild) -> Path:
    """The folder of the fake libcuda.so.1 and of the libraries over it, for LD_LIBRARY_PATH."""
    return _installed(native_build, "fake/libcuda.so.1").parent


def _installed(native_build: NativeBuild, name: str) -> Path:
    native_build()
    path = ROOT / "src/tierline/_lib" / name
    assert path.is_file(), f"scripts/native did not put {name} into src/tierline/_lib"
    return path
