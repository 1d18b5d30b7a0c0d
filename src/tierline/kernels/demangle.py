"""C++ kernel names for readers: the driver knows the mangled ones only."""

from __future__ import annotations

import ctypes
import functools

MOST = 60  # characters that are shown of a name


def readable(name: str) -> str:
    """`_Z8my_gemmPfS_` as `my_gemm`: demangled where that works, then without what its template and its call take.

    >>> readable("not_mangled")
    'not_mangled'
    """
    if not name:
        return "(no name)"
    whole = _demangled(name) if name.startswith("_Z") else name
    short = _without(_without(whole, "(", ")"), "<", ">").removeprefix("void ").strip() or whole
    return short if len(short) <= MOST else f"{short[: MOST - 1]}…"


def _without(text: str, begin: str, end: str) -> str:
    """`text` less all that stands between `begin` and `end`; as it is where these do not pair up."""
    kept, depth = [], 0
    for letter in text:
        depth += letter == begin
        if depth == 0:
            kept.append(letter)
        if letter == end:
            depth -= 1
            if depth < 0:
                return text
    return "".join(kept) if depth == 0 else text


@functools.cache
def _demangled(name: str) -> str:
    try:
        demangle = ctypes.CDLL("libstdc++.so.6").__cxa_demangle
        free = ctypes.CDLL(None).free
    except (OSError, AttributeError):
        return name
    demangle.restype, free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
    status = ctypes.c_int(-1)
    address = demangle(name.encode(), None, None, ctypes.byref(status))
    if not address:
        return name
    try:
        return ctypes.string_at(address).decode(errors="replace")
    finally:
        free(address)
