"""Roofline of a kernel from its shape: operations and bytes of the usual ones, and what they mean on a device.

Formulas as in the design of the kernel tier; bytes count every operand once, so on tensors that fit the L2 cache they are an
upper bound. `F` operations, `B` bytes, a multiply-add counts as two operations.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tierline.core.nouns import NS_PER_S

Bound = Literal["compute", "memory", "unknown"]


@dataclass(frozen=True, slots=True)
class Work:
    """What a kernel does: floating-point operations and bytes moved to and from memory."""

    flops: float
    bytes: float

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    @property
    def intensity(self) -> float:
        """Operations per byte."""
        return self.flops / self.bytes if self.bytes else float("inf") if self.flops else 0.0


@dataclass(frozen=True, slots=True)
class Peak:
    """What a device can do per second at most."""

    flops_per_s: float
    bytes_per_s: float

    @property
    def knee(self) -> float:
        """Intensity at which both limits are reached together."""
        return self.flops_per_s / self.bytes_per_s


def gemm(m: int, n: int, k: int, batch: int = 1, element_bytes: int = 2, *, accumulates: bool = False) -> Work:
    """C[m,n] = A[m,k]·B[k,n] (+ C): F = 2MNK, B = s(MK + KN + (1+β)MN), both times `batch`."""
    moved = m * k + k * n + (2 if accumulates else 1) * m * n
    return Work(2.0 * m * n * k * batch, float(element_bytes * moved * batch))


def conv2d(
    n: int, c: int, h: int, w: int, k: int, r: int, s: int, *, stride: int = 1, padding: int = 0, groups: int = 1,
    element_bytes: int = 2,
) -> Work:  # fmt: skip
    """Input [n,c,h,w], filters [k,c/groups,r,s], output [n,k,p,q]: F = 2NKPQCRS/groups, B = s(in + filters + out)."""
    p, q = (h + 2 * padding - r) // stride + 1, (w + 2 * padding - s) // stride + 1
    filters = k * (c // groups) * r * s
    moved = n * c * h * w + filters + n * k * p * q
    return Work(2.0 * n * p * q * filters, float(element_bytes * moved))


def attention(
    batch: int, heads: int, queries: int, keys: int, head_dim: int, *, kv_heads: int = 0, causal: bool = False,
    element_bytes: int = 2,
) -> Work:  # fmt: skip
    """Fused attention: F = 4·B·H·Sq·Sk·D, half of it under a causal mask of a square; B = Q and output once, K and V once
    per key-value head (`kv_heads` 0 = as many as heads). With `queries` 1 this is a decode step."""
    flops = 4.0 * batch * heads * queries * keys * head_dim * (0.5 if causal and queries == keys else 1.0)
    moved = 2 * batch * heads * queries * head_dim + 2 * batch * (kv_heads or heads) * keys * head_dim
    return Work(flops, float(element_bytes * moved))


def elementwise(elements: int, inputs: int = 1, outputs: int = 1, element_bytes: int = 2, operations: int = 1) -> Work:
    """F = operations per element, B = s·(inputs + outputs) per element."""
    return Work(float(elements * operations), float(element_bytes * (inputs + outputs) * elements))


def least_duration_ns(work: Work, peak: Peak) -> float:
    """No kernel with this work ends sooner: t = max(F/Fpeak, B/BWpeak)."""
    return max(work.flops / peak.flops_per_s, work.bytes / peak.bytes_per_s) * NS_PER_S


def sm_util(work: Work, duration_ns: float, peak: Peak) -> float:
    """F/(t·Fpeak), at most 1. `duration_ns` is positive."""
    return min(work.flops / (duration_ns / NS_PER_S * peak.flops_per_s), 1.0)


def bw_util(work: Work, duration_ns: float, peak: Peak) -> float:
    """B/(t·BWpeak), at most 1. `duration_ns` is positive."""
    return min(work.bytes / (duration_ns / NS_PER_S * peak.bytes_per_s), 1.0)


def bound(work: Work, peak: Peak) -> Bound:
    """By which limit it is held on this device: compute above the knee, memory below."""
    if not work.flops and not work.bytes:
        return "unknown"
    return "compute" if work.intensity >= peak.knee else "memory"
