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
import threading
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
    """`client` has no effect here: the program does not run under `tierline run`, has no CUDA driver, or there is no room for
    the client."""


@contextlib.contextmanager
def client(
    priority: str = DEFAULT_PRIORITY, name: str = "", stream: Any = None, memory_bytes: int = 0
) -> Iterator[Any]:
    """The calling thread is a client of its own while this lasts: streams that it makes or uses belong to it.

    `stream`: a CUDA stream as an integer handle, or any object with `cuda_stream` (torch) or `ptr` (CuPy); it belongs to this
    client whichever thread launches into it. None: with torch imported in the program, a new `torch.cuda.Stream` is made
    current and bound. `memory_bytes` caps the client's device memory, 0 = no cap. Yields the stream, or None.

    Raises `UnknownName` or `InvalidInput` for arguments that are none. What the library cannot do is a warning
    (`OutsideTierline`): the program goes on, its launches then count with the process.
    """
    code = _HIGH if kernel_priority(priority) == "high" else _BEST_EFFORT
    if len(name.encode()) > LABEL_BYTES:
        raise InvalidInput(f"client name '{name}': up to {LABEL_BYTES} bytes are allowed.")
    if memory_bytes < 0:
        raise InvalidInput(f"a memory cap of {memory_bytes} bytes: 0 (no cap) or more is allowed.")
    _handle(stream)
    library = _preloaded()
    number = -1
    if library is None:
        _warn("the program was not started with `tierline run -- CMD`")
    else:
        number = library.tierline_client_begin((name or _thread_name()).encode(), code, memory_bytes)
        if number < 0:
            _warn(_why_none())
    if library is None or number < 0:
        yield stream
        return
    try:
        with _current(stream, code) as current:
            if (handle := _handle(current)) is not None and library.tierline_bind_stream(handle, number) < 0:
                _warn("the stream could not be bound to it (256 streams are allowed on one device)")
            yield current
    finally:
        library.tierline_client_end(number)


def _thread_name() -> str:
    return f"{threading.current_thread().name}-{os.getpid()}".encode()[:LABEL_BYTES].decode(errors="ignore")


def _why_none() -> str:
    """Why the library began no client."""
    if os.environ.get("TIERLINE_KERNELS") == "off":
        return "TIERLINE_KERNELS=off switches the library off"
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "this process finds no CUDA driver, so there is nothing to share"
    return "there is no room for a further client (64 are allowed on one device)"


def _warn(why: str) -> None:
    # The caller's line: this function, the generator, contextlib's __enter__, then the `with`.
    warnings.warn(f"tierline.kernels.client has no effect here: {why}.", OutsideTierline, stacklevel=4)


def _preloaded() -> ctypes.CDLL | None:
    """The interposer in this process; None when it is not there."""
    own = ctypes.CDLL(None)
    try:
        begin, end, bind = own.tierline_client_begin, own.tierline_client_end, own.tierline_bind_stream
    except AttributeError:
        return None
    begin.argtypes, begin.restype = (ctypes.c_char_p, ctypes.c_int, ctypes.c_longlong), ctypes.c_int
    end.argtypes, end.restype = (ctypes.c_int,), ctypes.c_int
    bind.argtypes, bind.restype = (ctypes.c_void_p, ctypes.c_int), ctypes.c_int
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
