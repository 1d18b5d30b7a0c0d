"""PyTorch for the kernel tier, and the one file here that imports it: streams of clients, and measurements of a device."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

REPEATS = 7
WARM_UP = 3
CORUN_S = 0.2  # how long a pair of probes runs together
_GEMM = 8192
_COPY_BYTES = 1 << 30
_LINK_BYTES = 256 << 20


def is_in_use() -> bool:
    """The program has imported torch, and it sees a GPU."""
    torch = sys.modules.get("torch")
    return torch is not None and bool(torch.cuda.is_available())


def is_installed() -> bool:
    """torch is installed and sees a GPU."""
    try:
        return bool(_torch().cuda.is_available())
    except ImportError:
        return False


@contextlib.contextmanager
def own_stream(*, high: bool) -> Iterator[Any]:
    """A stream that nothing else uses, current for this thread. What was queued on the stream before comes first, and what
    follows there waits for it, so tensors may go in and out."""
    torch = _torch()
    before = torch.cuda.current_stream()
    stream = torch.cuda.Stream(priority=-1 if high else 0)
    stream.wait_stream(before)
    with torch.cuda.stream(stream):
        yield stream
    before.wait_stream(stream)


def peak_flops_per_s(device: int) -> dict[str, float]:
    """Dense matrix products of 8192, the median of seven: operations per second by number format (16-bit
    is bf16, and fp16 before compute capability 8.0)."""
    torch = _torch()
    found = {}
    half = torch.bfloat16 if torch.cuda.get_device_capability(device) >= (8, 0) else torch.float16
    for name, kind in (("16-bit", half), ("fp32", torch.float32)):
        a, b = (torch.randn(_GEMM, _GEMM, device=f"cuda:{device}", dtype=kind) for _ in range(2))
        found[name] = 2.0 * _GEMM**3 / _median_s(partial(torch.mm, a, b, out=torch.empty_like(a)), device)
    return found


def bytes_per_s(device: int) -> float:
    """A copy of 1 GiB within device memory, read and written both counted."""
    torch = _torch()
    source = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=f"cuda:{device}")
    target = torch.empty_like(source)
    return 2.0 * _COPY_BYTES / _median_s(lambda: target.copy_(source), device)


def link_bytes_per_s(device: int) -> tuple[float, float]:
    """256 MiB from pinned host memory to the device, and back."""
    torch = _torch()
    host = torch.empty(_LINK_BYTES, dtype=torch.uint8, pin_memory=True)
    there = torch.empty(_LINK_BYTES, dtype=torch.uint8, device=f"cuda:{device}")
    to_device = _median_s(lambda: there.copy_(host, non_blocking=True), device)
    to_host = _median_s(lambda: host.copy_(there, non_blocking=True), device)
    return _LINK_BYTES / to_device, _LINK_BYTES / to_host


def corun_slowdowns(device: int) -> dict[tuple[str, str], float]:
    """Of each probe (compute-bound, memory-bound, small) beside each: its time per launch over that alone."""
    torch = _torch()
    probes = _probes(device)
    streams = {name: (torch.cuda.Stream(device), torch.cuda.Stream(device)) for name in probes}
    alone = {name: _median_s(call, device) for name, call in probes.items()}
    found = {}
    for name, call in probes.items():
        for other, company in probes.items():
            count = max(int(CORUN_S / alone[name]), 1)
            # Twice as long as the one that is timed can take beside it, so that it never runs alone.
            ahead = max(int(4 * CORUN_S / alone[other]), 1)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize(device)
            with torch.cuda.stream(streams[name][0]):
                start.record()
            _interleaved(torch, (call, count, streams[name][0]), (company, ahead, streams[other][1]), end)
            end.synchronize()
            found[name, other] = start.elapsed_time(end) / 1e3 / count / alone[name]
            torch.cuda.synchronize(device)
    return found


def _interleaved(torch: Any, timed: Any, beside: Any, end: Any) -> None:
    """Launch both so that neither queue runs dry while the other is filled; `end` stands behind the last of `timed`."""
    (call, count, stream), (company, ahead, other) = timed, beside
    share = max(ahead // count, 1)
    left = ahead
    for _ in range(count):
        with torch.cuda.stream(other):
            for _ in range(min(share, left)):
                company()
            left -= min(share, left)
        with torch.cuda.stream(stream):
            call()
    with torch.cuda.stream(stream):
        end.record()


def _probes(device: int) -> Mapping[str, Callable[[], object]]:
    torch = _torch()
    a, b = (torch.randn(4096, 4096, device=f"cuda:{device}", dtype=torch.bfloat16) for _ in range(2))
    wide, small = (torch.empty(n, device=f"cuda:{device}") for n in (64 << 20, 32 << 10))
    product, sums, few = torch.empty_like(a), torch.empty_like(wide), torch.empty_like(small)
    return {
        "compute": lambda: torch.mm(a, b, out=product),
        "memory": lambda: torch.add(wide, 1.0, out=sums),
        "small": lambda: torch.add(small, 1.0, out=few),
    }


def _median_s(call: Callable[[], object], device: int) -> float:
    torch = _torch()
    for _ in range(WARM_UP):
        call()
    times: list[float] = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(WARM_UP):  # several, so that the launch itself does not count
            call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / WARM_UP)
    torch.cuda.synchronize(device)
    return sorted(times)[REPEATS // 2]


def _torch() -> Any:
    return importlib.import_module("torch")
