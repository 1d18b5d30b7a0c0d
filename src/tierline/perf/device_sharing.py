"""Iterations and the encoder beside each other on one device: how much each slows the other.

An iteration of n tokens uses `min(1, n / ridge)` of the device's arithmetic and `min(1, ridge / n)` of its memory bandwidth
(the roofline: the one that is used up decides its time), the encoder uses the shares in `Overlap`. Where a sum exceeds 1,
both go slower by the larger of the two sums. So an image costs decodes little and a large prompt chunk much, and nothing is
ever gained beyond the device's arithmetic or bandwidth.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Overlap:
    """`ridge_tokens`: from so many tokens on an iteration is bound by arithmetic (H100 in bf16: 989 TFLOP/s over 3.35 TB/s,
    two operations and two bytes a weight). `encoder_arithmetic`, `encoder_bandwidth`: what an encoder uses of each while it
    runs alone; a vision tower's matrix products over thousands of patches reach most of the former."""

    ridge_tokens: float = 295.0
    encoder_arithmetic: float = 0.8
    encoder_bandwidth: float = 0.3

    def slowdown(self, tokens: int) -> float:
        """By which factor an iteration of so many tokens and an encoder slow each other."""
        share = tokens / self.ridge_tokens
        arithmetic, bandwidth = min(1.0, share), min(1.0, 1.0 / share) if share else 1.0
        return max(1.0, arithmetic + self.encoder_arithmetic, bandwidth + self.encoder_bandwidth)


@dataclass(slots=True)
class Work:
    """Something under way: at `since_ns` it had `left_ns` to go at full speed, and goes `slowdown` times slower."""

    left_ns: float
    since_ns: int
    slowdown: float = 1.0

    @property
    def end_ns(self) -> int:
        return self.since_ns + round(self.left_ns * self.slowdown)

    def change(self, now_ns: int, slowdown: float) -> None:
        """It goes at another speed from now on."""
        if slowdown != self.slowdown:
            self.left_ns = max(0.0, self.left_ns - (now_ns - self.since_ns) / self.slowdown)
            self.since_ns, self.slowdown = now_ns, slowdown
