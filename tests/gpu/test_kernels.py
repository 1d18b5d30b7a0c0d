"""The interposer under real PyTorch on a real GPU: its doors, capture beside the poller, memory caps, priority.

Run by `scripts/gpu kernels`; skipped where torch finds no CUDA device or the native part is not built. The programs are
processes of their own: CUDA does not outlive a fork, and a preload library has to be there from the start.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from tierline.core.errors import TierlineError
from tierline.kernels.environment import kernel_environment, library_path
from tierline.kernels.native import make_region
from tierline.kernels.region import ClientSeen, RegionSeen, read_region

SOURCE = Path(__file__).resolve().parents[2] / "src"
LIMIT_S = 90


def lacking() -> str:
    """Why these tests cannot run here; "" when they can."""
    code = "import torch, sys; sys.exit(0 if torch.cuda.is_available() else 1)"
    try:
        if subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=LIMIT_S, check=False).returncode:
            return "torch is not installed for this Python, or finds no CUDA device"
        library_path()
    except (TierlineError, subprocess.TimeoutExpired) as error:
        return str(error)
    return ""


HAS_DRIVER = Path("/dev/nvidiactl").exists() or shutil.which("nvidia-smi") is not None
LACKING = lacking() if HAS_DRIVER else "there is no NVIDIA driver on this machine"
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(bool(LACKING), reason=LACKING)]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def region(tmp_path: Path) -> Path:
    path = tmp_path / "test.region"
    make_region(path, "interference", "latency", None)
    return path


@pytest.fixture
def start(region: Path, tmp_path: Path) -> Start:
    """Starts a Python program under the interposer: start(code, client=…, memory_bytes=…)."""

    def begin(code: str, client: str = "program", memory_bytes: int = 0) -> subprocess.Popen[str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("TIERLINE_")}
        env["PYTHONPATH"] = os.pathsep.join([str(SOURCE), env.get("PYTHONPATH", "")])
        env |= kernel_environment(region, "interference", "latency", "best-effort", client, memory_bytes, base=env)
        return subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(code)],
            env=env,
            cwd=tmp_path,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    return begin


def ended_well(process: subprocess.Popen[str], said: str = "") -> str:
    """What it printed. `said` goes to its stdin."""
    try:
        output, errors = process.communicate(said, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"it hung: {process.communicate()}") from None
    assert process.returncode == 0, errors
    return output


def client_in(seen: RegionSeen, name: str) -> ClientSeen:
    return next(client for client in seen.clients if client.name == name)


def test_every_way_of_pytorch_to_launch_is_seen(start: Start, region: Path) -> None:
    """The runtime's launches, cuBLAS with its own static runtime, Triton's launcher from torch.compile, a graph."""
    output = ended_well(
        start("""
            import torch
            x = torch.zeros(1 << 16, device="cuda")
            for _ in range(100):
                x.add_(1)
            with torch.cuda.stream(torch.cuda.Stream()):
                torch.mm(torch.ones(512, 512, device="cuda"), torch.ones(512, 512, device="cuda"))
            torch.cuda.synchronize()
            y = torch.compile(lambda v: torch.sin(v) * 2 + v)(x)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                x.mul_(2)
            for _ in range(5):
                graph.replay()
            torch.cuda.synchronize()
            print(x[0].item(), round(y[0].item(), 3))
        """)
    )
    assert output.split() == ["3200.0", "98.987"]  # 100 doubled five times; 2 sin(100) + 100
    seen = read_region(region)
    client = client_in(seen, "program")
    assert client.launches >= 107 and client.forced == 0 and client.overflowed == 0
    launches = {kernel.name: kernel.launches for kernel in seen.kernels}
    assert max((count for name, count in launches.items() if "elementwise" in name), default=0) >= 100
    for part in ("gemm", "triton_"):
        assert any(part in name for name in launches), (part, sorted(launches))


def test_a_global_capture_holds_while_another_client_is_polled(start: Start, region: Path) -> None:
    output = ended_well(
        start("""
            import threading, torch
            from tierline import kernels
            torch.zeros(1, device="cuda")
            at_work, stop = threading.Event(), threading.Event()

            def work():
                with kernels.client(priority="best-effort", name="work"):
                    for turn in range(600):
                        torch.cuda._sleep(500_000)
                        if turn == 20:
                            at_work.set()
                        if stop.is_set():
                            break

            thread = threading.Thread(target=work)
            with kernels.client(priority="high", name="capture"):
                x = torch.zeros(1 << 20, device="cuda")
                x.add_(1)
                thread.start()
                at_work.wait(60)
                graph = torch.cuda.CUDAGraph()
                with torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="global"):
                    for _ in range(50):
                        x.add_(1)
                for _ in range(4):
                    graph.replay()
                torch.cuda.current_stream().synchronize()
                print(x[0].item(), x[-1].item())
            stop.set()
            thread.join()
        """)
    )
    assert output.split() == ["201.0", "201.0"]
    seen = read_region(region)
    assert client_in(seen, "work").launches > 20
    assert all(client.forced == 0 for client in seen.clients)


def test_memory_runs_out_in_its_own_client_only(start: Start, region: Path) -> None:
    hog = """
        import sys, torch
        try:
            torch.empty(2 << 30, dtype=torch.uint8, device="cuda")
        except torch.cuda.OutOfMemoryError:
            print("out of memory")
        else:
            print("fits")
        torch.ones(64 << 20, dtype=torch.uint8, device="cuda").sum().item()
        print("goes on", flush=True)
        sys.stdin.read()
    """
    capped = start(hog, client="capped", memory_bytes=1 << 30)
    assert capped.stdout is not None
    assert [capped.stdout.readline(), capped.stdout.readline()] == ["out of memory\n", "goes on\n"]
    assert ended_well(start(hog, client="free")).splitlines() == ["fits", "goes on"]
    ended_well(capped)
    seen = read_region(region)
    assert client_in(seen, "capped").denied_allocations > 0
    assert client_in(seen, "free").denied_allocations == 0


def test_high_priority_never_waits_and_best_effort_makes_room(start: Start, region: Path) -> None:
    ended_well(
        start("""
            import threading, torch
            from tierline import kernels
            torch.zeros(1, device="cuda")
            ready, done = threading.Barrier(2), threading.Event()

            def work():
                with kernels.client(priority="best-effort", name="train"):
                    a = torch.randn(2048, 2048, device="cuda")
                    for _ in range(10):
                        torch.mm(a, a)
                    torch.cuda.current_stream().synchronize()
                    ready.wait(60)
                    while not done.is_set():
                        torch.mm(a, a)

            thread = threading.Thread(target=work)
            thread.start()
            with kernels.client(priority="high", name="serve"):
                b = torch.randn(2048, 2048, device="cuda")
                ready.wait(60)
                for _ in range(100):
                    for _ in range(10):
                        torch.mm(b, b)
                    torch.cuda.current_stream().synchronize()
            done.set()
            thread.join()
        """)
    )
    seen = read_region(region)
    serve, train = client_in(seen, "serve"), client_in(seen, "train")
    assert serve.launches >= 1000 and serve.waited == 0
    assert train.launches > 10 and train.waited > 0
    assert serve.forced == train.forced == 0
