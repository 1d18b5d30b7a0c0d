"""Which images of a request are decoded, where, and against which limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Collection, Sequence
from typing import TypeVar

from tierline.core.request import Picture
from tierline.core.serving_contracts import Generator
from tierline.server.openai.errors import bad_request
from tierline.server.openai.fetch import Fetcher
from tierline.server.openai.images import ImageReader, SeenImage
from tierline.server.openai.metrics import FrontMetrics
from tierline.server.openai.options import ImageLimits
from tierline.server.openai.threads import Threads
from tierline.server.openai.wire import Hold

T = TypeVar("T")


class Pixels:
    def __init__(
        self,
        reader: ImageReader,
        limits: ImageLimits,
        generator: Generator,
        fetcher: Fetcher,
        readers: Threads,
        decoders: Threads,
        metrics: FrontMetrics,
    ) -> None:
        self._reader = reader
        self._limits = limits
        self._generator = generator
        self._fetcher = fetcher
        self._readers = readers
        self._decoders = decoders
        self._metrics = metrics

    async def gather(self, images: Sequence[SeenImage], hold: Hold) -> dict[str, Picture]:
        """Sizes of all images, and pictures of those that have to be encoded or were never decoded here. Raises
        `ApiError`."""
        if not images:
            return {}
        remote = [image for image in images if image.url]
        if remote:
            await _all(*(self._fetch(image, hold) for image in remote))
        wanted: dict[str, bool] = {}
        for image in images:
            if image.content_hash not in wanted:
                wanted[image.content_hash] = image.size is None or await self._generator.wants_pixels(
                    image.content_hash
                )
            cost = "decoded" if wanted[image.content_hash] else "known" if image.is_text else "hashed"
            self._metrics.images[cost].inc()
        return await self.decode(images, [name for name, wants in wanted.items() if wants], hold)

    async def decode(self, images: Sequence[SeenImage], hashes: Collection[str], hold: Hold) -> dict[str, Picture]:
        """Pictures of `hashes`, each once. Raises `ApiError`."""
        chosen = {image.content_hash: image for image in images if image.content_hash in hashes}
        pixels = sum(image.pixels for image in chosen.values())
        if pixels > self._limits.max_request_pixels:
            raise bad_request(
                f"The request's images have {pixels} pixels; {self._limits.max_request_pixels} in all are allowed.",
                "messages",
                "image_too_large",
            )
        hold.take(3 * pixels)
        found = await _all(*(self._decoders.run(self._reader.picture, image) for image in chosen.values()))
        for image in images:  # the same picture twice in one request
            if image.size is None:
                image.size = chosen[image.content_hash].size
        return {picture.content_hash: picture for picture in found}

    async def _fetch(self, image: SeenImage, hold: Hold) -> None:
        image.source = await self._fetcher.fetch(image.url, image.place)
        hold.take(len(image.source))
        await self._readers.run(self._reader.identify, image)


async def _all(*work: Awaitable[T]) -> list[T]:
    """Results in order; the first error ends the others and is raised as it is."""
    if len(work) == 1:
        return [await work[0]]
    tasks = [asyncio.ensure_future(each) for each in work]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
