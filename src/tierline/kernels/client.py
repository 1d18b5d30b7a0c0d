"""Threads of one process as clients of their own: `tierline.kernels.client(...)`.

Kernels of two processes only run together under MPS; kernels of two threads on two streams always may. Under `tierline run`
a program says which of its threads (and streams) are one client::

    with tierline.kernels.client(priority="high", name="serve"):
        serve()                       # with torch, on a stream of its own

Everywhere else the context does nothing, after one warning.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from tierline.core.errors import InvalidInput
from tierline.kernels.environment import LABEL_BYTES
from tierline.policies.kernels import DEFAULT_PRIORITY, kernel_priority

if TYPE_CHECKING:
    from typing import Any

_HIGH, _BEST_EFFORT = 0, 1  # `Priority` of native/core


class OutsideTierline(UserWarning):
    """`client` was used in a program that does not run under `tierline run`: nothing is gated."""


@contextlib.contextmanager
def client(priority: str = DEFAULT_PRIORITY, name: str = "", stream: Any = None) -> Iterator[Any]:
    """The calling thread is a client of its own while this lasts, and so are the streams bound to it.

    `stream`: a CUDA stream as an integer handle, or any object with `cuda_stream` (torch) or `ptr` (CuPy). None: with torch
    imported in the program, a new `torch.cuda.Stream` is made current and bound; else the launches are known by their thread.
    Yields the stream, or None. Raises `UnknownName` for a priority that is none, `InvalidInput` for one client too many.
    """
    code = _HIGH if kernel_priority(priority) == "high" else _BEST_EFFORT
    if len(name.encode()) > LABEL_BYTES:
        raise InvalidInput(f"client name '{name}': up to {LABEL_BYTES} bytes are allowed.")
    library = _preloaded()
    if library is None:
        warnings.warn(
            "tierline.kernels.client does nothing here: the program was not started with `tierline run -- CMD`.",
            OutsideTierline,
            stacklevel=3,
        )
        yield stream
        return
    slot = library.tierline_client_begin((name or f"thread-{os.getpid()}").encode(), code)
    if slot < 0:
        raise InvalidInput("no further client fits into the region: 64 are allowed on one device.")
    try:
        with _current(stream, code) as current:
            if (handle := _handle(current)) is not None and library.tierline_bind_stream(ctypes.c_void_p(handle)) != 0:
                raise InvalidInput(
                    f"stream {handle:#x} cannot be bound to a client: 1024 streams are allowed on one device."
                )
            yield current
    finally:
        library.tierline_client_end(slot)


def _preloaded() -> ctypes.CDLL | None:
    """The interposer in this process; None when it is not there."""
    own = ctypes.CDLL(None)
    try:
        begin, end, bind = own.tierline_client_begin, own.tierline_client_end, own.tierline_bind_stream
    except AttributeError:
        return None
    begin.argtypes, begin.restype = (ctypes.c_char_p, ctypes.c_int), ctypes.c_int
    end.argtypes, end.restype = (ctypes.c_int,), None
    bind.argtypes, bind.restype = (ctypes.c_void_p,), ctypes.c_int
    return own


def _handle(stream: Any) -> int | None:
    """The driver's handle of a stream in one of the shapes that `client` takes."""
    if stream is None or isinstance(stream, int):
        return stream
    for attribute in ("cuda_stream", "ptr"):
        handle = getattr(stream, attribute, None)
        if isinstance(handle, int):
            return handle
    raise InvalidInput(
        f"{stream!r} is no CUDA stream: an integer handle, or an object with cuda_stream or ptr is needed."
    )


@contextlib.contextmanager
def _current(stream: Any, code: int) -> Iterator[Any]:
    """The stream that is bound: the one given, or with torch a fresh one that is current while this lasts."""
    from tierline.kernels import torch_device

    if stream is not None or not torch_device.is_in_use():
        yield stream
        return
    with torch_device.own_stream(high=code == _HIGH) as own:
        yield own
