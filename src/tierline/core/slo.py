"""What a deployment has promised: the latest first token and the time between tokens."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tierline.core.errors import InvalidInput

_UNITS = {"ms": 1_000_000, "s": 1_000_000_000}
_KEYS = {"ttft": "ttft_ns", "tpot": "tpot_ns", "image": "image_ttft_ns", "ktoken": "ttft_ns_per_ktoken"}


@dataclass(frozen=True, slots=True)
class Slo:
    """`ttft_ns`: until the first token; `tpot_ns`: mean time between the later ones. `image_ttft_ns`: until the first token
    of a request with images (0 = as without). `ttft_ns_per_ktoken`: so much more for every thousand prompt tokens."""

    ttft_ns: int = 2_000_000_000
    tpot_ns: int = 50_000_000
    image_ttft_ns: int = 0
    ttft_ns_per_ktoken: int = 0

    def __post_init__(self) -> None:
        """Raises `InvalidInput`."""
        if self.ttft_ns <= 0 or self.tpot_ns <= 0 or self.image_ttft_ns < 0 or self.ttft_ns_per_ktoken < 0:
            raise InvalidInput(f"{self}: times above 0 are needed (image and ktoken may be 0).")

    def ttft_of(self, prompt_tokens: int, images: int) -> int:
        """Nanoseconds that a request's first token may take."""
        base = self.image_ttft_ns if images and self.image_ttft_ns else self.ttft_ns
        return base + self.ttft_ns_per_ktoken * prompt_tokens // 1000

    @classmethod
    def parse(cls, text: str) -> Slo:
        """`ttft=500ms,tpot=50ms,image=2s,ktoken=20ms`; what is not named keeps its default. Raises `InvalidInput`.

        >>> Slo.parse("ttft=1.5s, tpot=40ms").ttft_ns
        1500000000
        """
        values: dict[str, int] = {}
        for part in filter(None, text.replace(" ", "").split(",")):
            match = re.fullmatch(r"([a-z]+)=(\d+(?:\.\d+)?)(ms|s)", part)
            if match is None or match[1] not in _KEYS:
                raise InvalidInput(
                    f"--slo '{text}': {', '.join(_KEYS)} with a time in s or ms are allowed, as in ttft=500ms,tpot=50ms."
                )
            values[_KEYS[match[1]]] = round(float(match[2]) * _UNITS[match[3]])
        return cls(**values)
