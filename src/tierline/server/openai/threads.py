"""A bounded pool of threads: work beyond what may wait is refused, not piled up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from tierline.core.errors import Overloaded

T = TypeVar("T")


class Threads:
    def __init__(self, name: str, count: int, max_waiting: int) -> None:
        self._name = name
        self._pool = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._limit = count + max_waiting
        self._jobs = 0

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """`work(*arguments)` in a thread. Raises `Overloaded` when too much waits, and what `work` raises. Work whose
        caller was cancelled is dropped if it has not begun."""
        if self._jobs >= self._limit:
            raise Overloaded(f"{self._jobs} requests wait to be read ({self._name}): no more are taken.")
        future = self._pool.submit(work, *arguments)
        self._jobs += 1
        loop = asyncio.get_running_loop()

        def gone() -> None:
            self._jobs -= 1

        def done(_: object) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(gone)

        try:
            return await asyncio.wrap_future(future)
        finally:
            if future.done():
                gone()
            else:
                future.add_done_callback(done)

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)
