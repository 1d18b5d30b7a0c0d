"""Operations and bytes of the usual kernels, and where they lie under a roof."""

import pytest

from tierline.perf.roofline import (
    Peak,
    Work,
    attention,
    bound,
    bw_util,
    conv2d,
    elementwise,
    gemm,
    least_duration_ns,
    sm_util,
)

H200 = Peak(flops_per_s=989e12, bytes_per_s=4.8e12)


def test_gemm():
    assert gemm(8192, 8192, 8192) == Work(2 * 8192**3, 2 * 3 * 8192**2)
    assert gemm(2, 3, 4, batch=5, element_bytes=4, accumulates=True) == Work(2 * 24 * 5, 4 * (8 + 12 + 12) * 5)


def test_convolution_counts_its_output_and_groups():
    dense = conv2d(32, 64, 56, 56, 128, 3, 3, padding=1)
    assert dense == Work(2 * 32 * 128 * 56 * 56 * 64 * 9, 2 * (32 * 64 * 3136 + 128 * 64 * 9 + 32 * 128 * 3136))
    assert conv2d(32, 64, 56, 56, 128, 3, 3, padding=1, groups=4).flops == dense.flops / 4
    assert conv2d(1, 1, 5, 5, 1, 3, 3, stride=2).flops == 2 * 2 * 2 * 9
    # A 1x1 convolution is a matrix product.
    assert conv2d(4, 8, 7, 7, 16, 1, 1).flops == gemm(4 * 49, 16, 8).flops


def test_attention_prefill_and_decode():
    prefill = attention(2, 16, 1024, 1024, 128)
    assert prefill == Work(4 * 2 * 16 * 1024 * 1024 * 128, 2 * (4 * 2 * 16 * 1024 * 128))
    assert attention(2, 16, 1024, 1024, 128, causal=True).flops == prefill.flops / 2
    decode = attention(8, 32, 1, 4096, 128, kv_heads=8)
    assert decode.bytes == pytest.approx(2 * 2 * 8 * 8 * 4096 * 128, rel=0.01)
    assert bound(prefill, H200) == "compute"
    assert bound(decode, H200) == "memory"


def test_elementwise_is_memory_bound():
    work = elementwise(1 << 20, inputs=2, element_bytes=4)
    assert work == Work(1 << 20, 3 * 4 << 20)
    assert bound(work, H200) == "memory"
    assert bound(Work(0, 0), H200) == "unknown"


def test_the_roof_is_the_shorter_of_both_limits():
    assert H200.knee == pytest.approx(206, rel=0.01)
    work = gemm(8192, 8192, 8192)
    least = least_duration_ns(work, H200)
    assert least == pytest.approx(1.112e6, rel=0.001)
    assert sm_util(work, least, H200) == pytest.approx(1.0)
    assert bw_util(work, least, H200) == pytest.approx(work.bytes / H200.bytes_per_s * 1e9 / least)
    assert sm_util(work, 2 * least, H200) == pytest.approx(0.5)
    assert sm_util(work, least / 2, H200) == 1.0  # sooner than possible: the peak is wrong, the share stays one


def test_works_add_up():
    total = gemm(2, 2, 2) + elementwise(4)
    assert total == Work(16 + 4, 24 + 16)
    assert total.intensity == pytest.approx(0.5)
    assert Work(1, 0).intensity == float("inf")
