"""What launching a tiny kernel costs a PyTorch program's thread, with and without the interposer in it.

Runs one round for each line on its standard input and prints a line of JSON: nanoseconds per launch, the median burst, the
tenth and ninetieth percentile. The device is waited for between bursts, outside the time taken. `--company` keeps another
client of the process at work on the device meanwhile, with a kernel that needs one multiprocessor. `--count LIBRARY` counts
calls into the driver instead (native/tests/cuda_count_calls.cpp) and prints them per launch.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

WARM_UP = 200
SLEEP_CYCLES = 20_000_000  # about 10 ms
LEAVE_S = 20.0


def burst_ns(value: torch.Tensor, launches: int) -> float:
    began = time.perf_counter_ns()
    for _ in range(launches):
        value.add_(1)
    return (time.perf_counter_ns() - began) / launches


def one_round(value: torch.Tensor, bursts: int, launches: int) -> dict[str, float]:
    ns = []
    for _ in range(bursts):
        ns.append(burst_ns(value, launches))
        wait(value)
    ns.sort()
    return {"median_ns": ns[bursts // 2], "p10_ns": ns[bursts // 10], "p90_ns": ns[bursts * 9 // 10]}


def wait(value: torch.Tensor) -> None:
    if value.is_cuda:
        torch.cuda.current_stream().synchronize()


@contextlib.contextmanager
def own_client(is_client: bool, priority: str, name: str) -> Iterator[None]:
    """This thread with a stream of its own, which is a client where the interposer is in the process."""
    if is_client:
        from tierline import kernels

        with kernels.client(priority=priority, name=name):
            yield
    elif torch.cuda.is_available():
        with torch.cuda.stream(torch.cuda.Stream()):
            yield
    else:
        yield


def keep_busy(is_client: bool, begin: threading.Event, stop: threading.Event, failed: list[BaseException]) -> None:
    try:
        with own_client(is_client, "high", "company"):
            for _ in range(5):  # alone, so that the gate gets to know the kernel
                torch.cuda._sleep(SLEEP_CYCLES)
                torch.cuda.current_stream().synchronize()
            begin.set()
            while not stop.is_set():
                torch.cuda._sleep(SLEEP_CYCLES)
                torch.cuda.current_stream().synchronize()
    except BaseException as error:
        failed.append(error)
        begin.set()


def count_calls(library: Path, value: torch.Tensor, launches: int) -> dict[str, Any]:
    own = ctypes.CDLL(str(library))
    if code := own.tierline_count_start():
        return {"counted": False, "why": f"CUPTI does not count here (code {code}; -1: no CUPTI library)"}
    burst_ns(value, launches)
    wait(value)
    own.tierline_count_reset()
    burst_ns(value, launches)
    time.sleep(0.05)  # what the poller does afterwards counts too
    wait(value)
    text = ctypes.create_string_buffer(1 << 16)
    own.tierline_count_read(text, len(text))
    calls = dict(line.split() for line in text.value.decode().splitlines())
    return {"counted": True, "launches": launches, "calls": {name: int(count) for name, count in calls.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bursts", type=int, default=60)
    parser.add_argument("--launches", type=int, default=500, help="a burst (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--clients", action="store_true", help="with --company: the threads are clients of their own")
    parser.add_argument("--company", action="store_true")
    parser.add_argument("--count", type=Path, metavar="LIBRARY")
    options = parser.parse_args()
    if options.company and options.device == "cpu":
        raise SystemExit("gpu_launches.py: --company needs --device cuda.")
    begin, stop = threading.Event(), threading.Event()
    failed: list[BaseException] = []
    company = threading.Thread(target=keep_busy, args=(options.clients, begin, stop, failed), daemon=True)
    with contextlib.ExitStack() as stack:
        if options.company:
            stack.enter_context(own_client(options.clients, "best-effort", "bursts"))
        value = torch.zeros(32, device=options.device)
        burst_ns(value, WARM_UP)
        wait(value)
        if options.company:
            company.start()
            begin.wait(LEAVE_S)
        if options.count:
            print(json.dumps(count_calls(options.count, value, options.launches)), flush=True)
        else:
            print(json.dumps({"at": "ready"}), flush=True)
            for _ in sys.stdin:
                print(json.dumps(one_round(value, options.bursts, options.launches)), flush=True)
        stop.set()
        if company.ident is not None:
            company.join(LEAVE_S)
    if failed:
        raise SystemExit(f"gpu_launches.py: the company failed: {failed[0]!r}")


if __name__ == "__main__":
    main()
