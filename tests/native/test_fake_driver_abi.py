"""The fake driver's functions against the real headers, where a CUDA toolkit is installed: names, versions, prototypes."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

DRIVER = Path(__file__).resolve().parents[2] / "native/fake/driver"
HEADERS = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")) / "include"
ENTRY = re.compile(r"^FAKE_ENTRY\((\w+), (\d+), ([01]), (\w+)\)$", re.MULTILINE)
PREAMBLE = """
#define __CUDA_API_VERSION_INTERNAL
#include <cuda.h>
#include <cstddef>
#include <cstdint>
#include <type_traits>
namespace mine {
#include "cuda.hpp"
}
// Two types are alike when a caller passes them alike: both pointers, both numbers of one size, both structs of one size.
template <class A, class B>
constexpr bool alike() {
    if constexpr (std::is_pointer_v<A> || std::is_pointer_v<B>) return std::is_pointer_v<A> && std::is_pointer_v<B>;
    else if constexpr (std::is_class_v<A>) return std::is_class_v<B> && sizeof(A) == sizeof(B);
    else return std::is_floating_point_v<A> == std::is_floating_point_v<B> && sizeof(A) == sizeof(B);
}
template <class A, class B>
struct Same : std::false_type {};
template <class RA, class... A, class RB, class... B>
struct Same<RA(A...), RB(B...)> {
    static constexpr bool value = [] {
        if constexpr (sizeof...(A) == sizeof...(B)) return alike<RA, RB>() && (alike<A, B>() && ...);
        else return false;
    }();
};
"""


def entries() -> list[tuple[str, int, bool, str]]:
    return [(n, int(v), p == "1", s) for n, v, p, s in ENTRY.findall((DRIVER / "entries.def").read_text())]


def definitions() -> dict[str, str]:
    """Parameter lists of the exported functions, by symbol."""
    found = {}
    for file in sorted(DRIVER.glob("*.cpp")):
        text = file.read_text()
        for match in re.finditer(r"^CUresult (cu[A-Z]\w*)\(", text, re.MULTILINE):
            depth, at = 1, match.end()
            while depth:
                depth += {"(": 1, ")": -1}.get(text[at], 0)
                at += 1
            found[match.group(1)] = text[match.end() : at - 1]
    return found


def test_every_entry_is_defined_once() -> None:
    symbols = [symbol for _, _, _, symbol in entries()]
    assert len(symbols) == len(set(symbols))
    assert set(definitions()) == set(symbols)


@pytest.fixture(scope="module")
def headers() -> Path:
    if not (HEADERS / "cuda.h").is_file():
        pytest.skip("no CUDA toolkit: cuda.h is not there")
    return HEADERS


def test_names_and_versions_are_the_real_ones(headers: Path) -> None:
    real = set(re.findall(r"PFN_(cu\w+?)_v(\d+)(_ptsz|_ptds)?\b", (headers / "cudaTypedefs.h").read_text()))
    for name, version, per_thread, symbol in entries():
        suffix = symbol[-5:] if per_thread else ""
        assert (name, str(version), suffix) in real, symbol


def test_prototypes_are_the_real_ones(headers: Path, tmp_path: Path) -> None:
    compiler = next((c for c in (os.environ.get("CXX", "c++"), "g++", "clang++") if shutil.which(c)), None)
    if compiler is None:
        pytest.skip("no C++ compiler is on PATH")
    text = (headers / "cuda.h").read_text()
    source = [PREAMBLE]
    for symbol, parameters in definitions().items():
        real = symbol if re.search(rf"\b{symbol}\s*\(", text) else symbol.removesuffix("_ptsz").removesuffix("_ptds")
        source.append(f"namespace mine {{ using {symbol}_t = CUresult({parameters}); }}")
        source.append(f'static_assert(Same<mine::{symbol}_t, decltype(::{real})>::value, "{symbol}");')
    # The check must be able to fail.
    source.append("static_assert(!Same<mine::cuInit_t, decltype(::cuDeviceGetCount)>::value);")
    path = tmp_path / "prototypes.cpp"
    path.write_text("\n".join(source))
    command = [
        compiler,
        "-std=c++17",
        "-fsyntax-only",
        "-I",
        str(headers),
        "-I",
        str(DRIVER.parents[1] / "abi"),
        str(path),
    ]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert outcome.returncode == 0, outcome.stderr
