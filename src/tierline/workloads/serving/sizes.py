"""How large a picture is that takes a given number of tokens.

Towers of the Qwen2-VL family take a picture at its own size: every square of `unit_px` pixels becomes one token (28 px
in Qwen2-VL and Qwen2.5-VL, 14 px patches merged two by two; 32 px in Qwen3-VL). Models of one fixed size make of any
picture what they always make.
"""

from __future__ import annotations

import functools
import math

QWEN2_UNIT_PX = 28
WIDEST = 2.0  # width over height at most, where the count allows it


@functools.lru_cache(maxsize=8192)
def picture_px(tokens: int, unit_px: int = QWEN2_UNIT_PX) -> tuple[int, int]:
    """(width, height) in pixels, multiples of `unit_px`, for as nearly `tokens` tokens as a picture can have that is
    at most twice as wide as high; of equally near ones the squarest.

    >>> picture_px(1196), picture_px(1)
    ((1288, 728), (28, 28))
    """
    best = (math.inf, math.inf, 1, 1)
    for high in range(1, math.isqrt(tokens) + 1):
        for wide in {tokens // high, -(-tokens // high)}:
            if wide <= WIDEST * high or high == 1 == math.isqrt(tokens):
                best = min(best, (abs(wide * high - tokens), wide / high, wide, high))
    _, _, wide, high = best
    return wide * unit_px, high * unit_px
