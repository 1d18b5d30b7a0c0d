"""Several answers as one stream; closing it closes them all, which cancels what is unfinished."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def close(stream: AsyncIterator[object]) -> None:
    """`aclose` of an iterator that has one."""
    aclose = getattr(stream, "aclose", None)
    if aclose is not None:
        await aclose()


async def merged(streams: Sequence[AsyncIterator[T]]) -> AsyncIterator[tuple[int, T]]:
    """(index, item) as they come. The first error ends all."""
    if len(streams) == 1:
        try:
            async for item in streams[0]:
                yield 0, item
        finally:
            await close(streams[0])
        return
    queue: asyncio.Queue[tuple[int, T | None, BaseException | None]] = asyncio.Queue(2 * len(streams))

    async def pump(index: int, stream: AsyncIterator[T]) -> None:
        try:
            async for item in stream:
                await queue.put((index, item, None))
            await queue.put((index, None, None))
        except Exception as error:
            await queue.put((index, None, error))
        finally:
            await close(stream)

    pumps = [asyncio.create_task(pump(index, stream)) for index, stream in enumerate(streams)]
    left = len(pumps)
    try:
        while left:
            index, found, error = await queue.get()
            if error is not None:
                raise error
            if found is None:
                left -= 1
            else:
                yield index, found
    finally:
        for task in pumps:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*pumps, return_exceptions=True)
