"""Names of kernels for readers."""

import ctypes.util

import pytest

from tierline.kernels.demangle import MOST, readable


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("rms_norm_kernel", "rms_norm_kernel"),
        ("", "(no name)"),
        ("_Zbroken", "_Zbroken"),
        ("void gemm<float, 128>(float*)", "gemm"),
        ("less<", "less<"),
    ],
)
def test_plain_names(name, shown):
    assert readable(name) == shown


def test_long_names_are_cut():
    assert readable("k" * 200) == "k" * (MOST - 1) + "…"


@pytest.mark.skipif(not ctypes.util.find_library("stdc++"), reason="no libstdc++ here")
def test_mangled_names():
    assert readable("_Z4gemmPfS_") == "gemm"
    fill = "_ZN2at6native29vectorized_elementwise_kernelILi4ENS0_11FillFunctorIfEESt5arrayIPcLm1EEEEviT0_T1_"
    assert readable(fill) == "at::native::vectorized_elementwise_kernel"
