"""How an instance encodes images, beside its iterations or in their way."""

from __future__ import annotations

from typing import Literal

EncoderKind = Literal["overlapped", "inline", "blocking"]
"""
- `overlapped`: beside iterations; both are slowed as the device has it (`perf/device_sharing.py` where it is predicted);
- `inline`: between iterations, one image at a time, as an engine does that runs the encoder in its step;
- `blocking`: between iterations, all that wait, and what the CPU does to an image stalls the iterations as well: an engine of
  the time of vLLM 0.6.6.
"""
