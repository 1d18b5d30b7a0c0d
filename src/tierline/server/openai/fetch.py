"""Placeholder"""

from __future__ import annotations

from tierline.server.openai.options import ImageLimits


class Fetcher:
    def __init__(self, limits: ImageLimits) -> None:
        self._limits = limits

    async def fetch(self, url: str, place: str) -> bytes:
        raise NotImplementedError

    async def aclose(self) -> None: ...
