"""What a source is asked for: the contract between the grammar of serving workloads and their sources."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

DEFAULT_REQUESTS = 1000
"""Of synthetic workloads that say neither `seconds` nor `requests`."""


@dataclass(frozen=True, slots=True)
class Want:
    """`rate`: requests per second on average; 0 = the source's own. All requests that arrive before `seconds` are wanted
    (0 = no end), at most `requests` (0 = any number); both 0 = as many as the source has. `part` tells two uses of one
    source in a mix apart."""

    rate: float = 0.0
    seconds: float = 0.0
    requests: int = 0
    seed: int = 0
    part: int = 0

    def rng(self, name: str, *numbers: int) -> np.random.Generator:
        """PCG64 of seed, part, name and numbers: draws of one window or client do not shift those of another."""
        return np.random.Generator(np.random.PCG64([self.seed, self.part, *name.encode(), *numbers]))
