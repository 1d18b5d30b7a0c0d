"""A serving profile of round figures, for tests to `replace` what they look at."""

from __future__ import annotations

from tierline.perf.serving_profile import (
    FORMAT,
    Advice,
    Fit,
    Linear,
    Memory,
    Overhead,
    Preparation,
    ServingProfile,
    Transfer,
)

MADE_UP = ServingProfile(
    format=FORMAT,
    device="paper",
    model="abacus",
    source="a test",
    licence="",
    memory=Memory(1000, 500, 8, 4),
    transfer=Transfer(0.5, 100.0),
    preparation=Preparation(),
    overhead=Overhead(),
    advice=Advice(10, 1.0, 0.9, 0.2, 0.3, 0.5, "none"),
    fit=Fit(0, 0.0, 0.0),
    linear=Linear(0.01, 0.001, 0.0, 10, 0.0, 0.0, 0.0, encode_s=0.0, patch_s=0.002),
)
