"""Peaks of known GPUs by their makers' data sheets: what a device is taken for until `tierline calibrate device` has measured
it. Dense peaks of the fastest 16-bit unit, decimal units."""

from __future__ import annotations

from collections.abc import Mapping

from tierline.kernels.native import DeviceLimits

_GB = 10**9
# Words that all occur in the name the driver gives -> limits; the first that fits holds.
_SHEETS: Mapping[tuple[str, ...], DeviceLimits] = {
    ("b200",): DeviceLimits(148, 2.25e15, 8.0e12, 180 * _GB),
    ("h200",): DeviceLimits(132, 9.89e14, 4.8e12, 141 * _GB),
    ("h100", "pcie"): DeviceLimits(114, 7.56e14, 2.0e12, 80 * _GB),
    ("h100",): DeviceLimits(132, 9.89e14, 3.35e12, 80 * _GB),
    ("a100", "40gb"): DeviceLimits(108, 3.12e14, 1.555e12, 40 * _GB),
    ("a100",): DeviceLimits(108, 3.12e14, 2.039e12, 80 * _GB),
    ("v100",): DeviceLimits(80, 1.25e14, 9.0e11, 32 * _GB),
    ("l40s",): DeviceLimits(142, 3.62e14, 8.64e11, 48 * _GB),
    ("a10",): DeviceLimits(72, 1.25e14, 6.0e11, 24 * _GB),
    ("l4",): DeviceLimits(58, 1.21e14, 3.0e11, 24 * _GB),
    ("t4",): DeviceLimits(40, 6.5e13, 3.2e11, 16 * _GB),
    ("4090",): DeviceLimits(128, 1.65e14, 1.008e12, 24 * _GB),
    ("3090",): DeviceLimits(82, 7.1e13, 9.36e11, 24 * _GB),
}


def datasheet(name: str) -> DeviceLimits | None:
    """Of the device that the driver calls `name`; None when it is not in the table.

    >>> datasheet("NVIDIA H200").sms
    132
    """
    words = name.lower().replace("-", " ").split()
    for wanted, limits in _SHEETS.items():
        if all(word in words for word in wanted):
            return limits
    return None
