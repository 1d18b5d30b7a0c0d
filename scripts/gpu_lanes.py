"""Lanes of a GPU by green contexts: a large matrix product beside a memory-bound normalisation, each on SMs of its own.

Both alone on the whole device, one after another, on two plain streams, and in lanes made by ONE split of the device, as the
driver API makes it (through ctypes; two `torch.cuda.green_contexts` come from two splits, which overlap). Prints one line of
JSON. Where the driver has no green contexts, or torch cannot launch into them, the line says so.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
from collections.abc import Callable
from typing import Any

import torch

RESOURCE_BYTES = 512  # sizeof(CUdevResource) is 144 in CUDA 13.0; the driver writes no more than its own size
SM_COUNT_AT = 96
RESOURCE_SM = 1
DEFAULT_STREAM = 1
NON_BLOCKING = 1
REPEATS = 5


class DriverCallFailed(RuntimeError):
    """A driver function is missing or returned an error."""


def call(name: str, *arguments: Any) -> None:
    driver = ctypes.CDLL("libcuda.so.1")
    try:
        function = getattr(driver, name)
    except AttributeError:
        raise DriverCallFailed(f"this driver has no {name}") from None
    if code := function(*arguments):
        raise DriverCallFailed(f"{name} returned CUDA error {code}")


def sms_of(resource: Any) -> int:
    return ctypes.c_uint.from_buffer(resource, SM_COUNT_AT).value


def lanes(sms: int) -> list[tuple[int, Any]]:
    """(multiprocessors, stream) of two lanes, the first with at least `sms`, the second with the rest. One split."""
    torch.zeros(1, device="cuda")  # the primary context has to be there
    device = ctypes.c_int()
    call("cuDeviceGet", ctypes.byref(device), 0)
    whole, first, rest = ((ctypes.c_ubyte * RESOURCE_BYTES)() for _ in range(3))
    call("cuDeviceGetDevResource", device, ctypes.byref(whole), RESOURCE_SM)
    groups = ctypes.c_uint(1)
    call(
        "cuDevSmResourceSplitByCount",
        ctypes.byref(first), ctypes.byref(groups), ctypes.byref(whole), ctypes.byref(rest), 0, ctypes.c_uint(sms),
    )  # fmt: skip
    made = []
    for resource in (first, rest):
        description, context, stream = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        call("cuDevResourceGenerateDesc", ctypes.byref(description), ctypes.byref(resource), ctypes.c_uint(1))
        call("cuGreenCtxCreate", ctypes.byref(context), description, device, DEFAULT_STREAM)
        call("cuGreenCtxStreamCreate", ctypes.byref(stream), context, NON_BLOCKING, 0)
        made.append((sms_of(resource), torch.cuda.ExternalStream(stream.value)))
    return made


def probes(size: int, rows: int) -> dict[str, Callable[[], object]]:
    a, b = (torch.randn(size, size, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    wide = torch.randn(rows, 4096, device="cuda", dtype=torch.bfloat16)
    scale = torch.ones(4096, device="cuda", dtype=torch.bfloat16)
    return {
        "gemm": lambda: torch.mm(a, b, out=product),
        "norm": lambda: torch.nn.functional.rms_norm(wide, (4096,), scale),
    }


def timed_s(work: list[tuple[Callable[[], object], int, Any]]) -> float:
    """Seconds until all are done: each (call, how often, stream) on its stream, all streams beginning together."""
    times = []
    for _ in range(REPEATS):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        for _, _, stream in work:
            stream.wait_event(start)
        for turn in range(max(count for _, count, _ in work)):
            for function, count, stream in work:
                if turn < count:
                    with torch.cuda.stream(stream):
                        function()
        for _, _, stream in work:
            done = torch.cuda.Event()
            done.record(stream)
            torch.cuda.current_stream().wait_event(done)
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
    return statistics.median(times)


def measure(sms: list[int], size: int, rows: int, seconds: float) -> dict[str, Any]:
    kernels = probes(size, rows)
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    for function in kernels.values():
        timed_s([(function, 2, one)])
    alone = {name: timed_s([(function, 20, one)]) / 20 for name, function in kernels.items()}
    count = {name: max(round(seconds / one_s), 1) for name, one_s in alone.items()}
    found: dict[str, Any] = {
        "alone_s": alone,
        "launches": count,
        "torch_green_contexts": hasattr(torch.cuda, "green_contexts"),
        "rows": [],
    }

    def add(how: str, lane_sms: list[int], work: list[tuple[Callable[[], object], int, Any]]) -> None:
        found["rows"].append({"how": how, "sms": lane_sms, "seconds": timed_s(work)})

    gemm, norm = ((kernels[name], count[name]) for name in ("gemm", "norm"))
    add("one after another", [], [(*gemm, one), (*norm, one)])
    add("two plain streams", [], [(*gemm, one), (*norm, two)])
    for asked in sms:
        try:
            (norm_sms, norm_stream), (gemm_sms, gemm_stream) = lanes(asked)
            add("lanes", [gemm_sms, norm_sms], [(*gemm, gemm_stream), (*norm, norm_stream)])
        except (DriverCallFailed, RuntimeError, OSError) as error:
            found["rows"].append({"how": "lanes", "sms": [asked], "why": str(error)[:300]})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sms", type=int, nargs="+", default=[24, 32, 48, 64], help="of the norm's lane")
    parser.add_argument("--gemm", type=int, default=8192, help="side of the matrices (default: %(default)s)")
    parser.add_argument("--rows", type=int, default=131072, help="of the normalisation (default: %(default)s)")
    parser.add_argument(
        "--seconds", type=float, default=0.06, help="of each kernel alone, a run (default: %(default)s)"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("gpu_lanes.py: torch finds no CUDA device, and lanes are nothing without one.")
    print(json.dumps(measure(options.sms, options.gemm, options.rows, options.seconds)), flush=True)


if __name__ == "__main__":
    main()
