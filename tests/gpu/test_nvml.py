"""On real GPUs: they are found, given to jobs one by one, and left alone while somebody else computes on them.

Run by `scripts/gpu`; skipped where NVML shows no GPU.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tierline.backends.jobs.devices import discover, gpu_type, open_nvml
from tierline.cli.client import Client, JobRequest, connect
from tierline.config import DaemonOptions
from tierline.core.status import DeviceStatus
from tierline.testing.daemon import answers, spawn_daemon, wait_until

NVML = open_nvml()
GPUS = () if NVML is None else discover(None, NVML)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not any(d.gpu_type != "cpu" for d in GPUS), reason="NVML shows no GPU on this machine"),
]

# Holds a CUDA context until its stdin is closed. The driver alone: no toolkit, no framework.
HOLDER = """
import ctypes, sys
cuda = ctypes.CDLL("libcuda.so.1")
device, context = ctypes.c_int(), ctypes.c_void_p()
for code in (
    cuda.cuInit(0),
    cuda.cuDeviceGet(ctypes.byref(device), 0),
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device),
):
    if code:
        sys.exit(f"CUDA error {code}")
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def client() -> Iterator[Client]:
    """A daemon over all GPUs of this machine."""
    with tempfile.TemporaryDirectory(prefix="tl-", ignore_cleanup_errors=True) as folder:
        process = spawn_daemon(DaemonOptions(Path(folder), quantum=1, poll=0.05))
        try:
            with connect(Path(folder)) as found:
                wait_until(lambda: answers(found) or process.poll() is not None, "the daemon answers")
                assert process.poll() is None, process.communicate()
                yield found
                for job in found.jobs():
                    found.stop(job.job_id)
                wait_until(lambda: not found.jobs(), "all jobs have ended")
        finally:
            process.terminate()
            process.communicate(timeout=60)


@contextmanager
def context_on(index: str) -> Iterator[int]:
    """The pid of a process that is none of ours and computes on the GPU with this index."""
    env = {**os.environ, "CUDA_VISIBLE_DEVICES": index, "CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=env,
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            pytest.skip(f"no CUDA context can be made here: {process.communicate()[1].strip()}")
        yield process.pid
    finally:
        process.communicate(timeout=60)  # closes its stdin


def device_of(client: Client, device_id: str) -> DeviceStatus:
    return next(device for device in client.cluster().devices if device.device_id == device_id)


def unused(client: Client) -> DeviceStatus:
    for device in client.cluster().devices:
        assert NVML is not None
        if not NVML.compute_pids(int(device.device_id.removeprefix("gpu"))):
            return device
    pytest.skip("every GPU of this machine is in use by somebody else")


def test_gpus_are_found_with_memory_and_type(client: Client) -> None:
    assert NVML is not None
    by_id = {f"gpu{gpu.index}": gpu for gpu in NVML.gpus()}
    devices = client.cluster().devices
    assert [device.device_id for device in devices] == [device.device_id for device in GPUS]
    for device in devices:
        assert device.memory_bytes == by_id[device.device_id].memory_bytes > 1 << 30
        assert device.gpu_type == gpu_type(by_id[device.device_id].name) != "cpu"


def test_a_job_sees_the_gpu_it_was_given_and_no_other(client: Client, tmp_path: Path) -> None:
    unused(client)
    code = "import os; print(os.environ['CUDA_VISIBLE_DEVICES'], os.environ['TIERLINE_GPUS'])"
    (job_id,) = client.submit([JobRequest(argv=(sys.executable, "-c", code), cwd=str(tmp_path))])
    wait_until(lambda: client.job(job_id).phase == "completed", "the job has completed")
    (given,) = [device for entry in client.why(job_id).decisions for device in entry.devices]
    index = given.removeprefix("gpu")
    printed = b"".join(chunk.data for chunk in client.follow(job_id)).decode()
    assert printed.split() == [index, index]


def test_a_gpu_that_others_compute_on_is_left_alone(client: Client, tmp_path: Path) -> None:
    device = unused(client)
    index = device.device_id.removeprefix("gpu")
    with context_on(index) as pid:
        assert NVML is not None
        if not NVML.compute_pids(int(index)):
            pytest.skip("NVML shows no processes here, as in some containers")
        wait_until(lambda: bool(device_of(client, device.device_id).blocked), "the device is blocked")
        assert "process" in device_of(client, device.device_id).blocked
        if os.path.exists(f"/proc/{pid}") and pid in NVML.compute_pids(int(index)):
            assert str(pid) in device_of(client, device.device_id).blocked
        jobs = [JobRequest(argv=("true",), cwd=str(tmp_path)) for _ in client.cluster().devices]
        ids = client.submit(jobs)
        free = [d for d in client.cluster().devices if not d.blocked]
        wait_until(
            lambda: not free or all(client.job(i).phase == "completed" for i in ids), "the other GPUs take the jobs"
        )
        used = {name for i in ids for entry in client.why(i).decisions for name in entry.devices}
        assert device.device_id not in used
    wait_until(lambda: not device_of(client, device.device_id).blocked, "the device is free again")
    wait_until(lambda: not client.jobs(), "what waited for it has run")
