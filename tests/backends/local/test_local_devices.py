"""Devices over a fake NVML: the boundary is the library, everything behind it is real (processes, /proc)."""

from __future__ import annotations

import os
import subprocess
import threading

import pytest

from tierline.backends.jobs.devices import Gpu, discover, gpu_type
from tierline.backends.jobs.processes import environment
from tierline.clock import WallClock
from tierline.core.errors import InvalidInput
from tierline.core.events import DevicesBlocked, JobSubmitted, NodeJoined
from tierline.core.nouns import Device, Node
from tierline.policies.jobs import make_policy
from tierline.runtime.driver import Driver
from tierline.schedulers.jobs import JobScheduler


class FakeNvml:
    def __init__(self, *names: str) -> None:
        self.names = names
        self.pids: dict[int, list[int]] = {}

    def gpus(self):
        return [Gpu(i, name, f"GPU-{i}{i}{i}{i}-abc", 80 << 30) for i, name in enumerate(self.names)]

    def compute_pids(self, index: int):
        return self.pids.get(index, [])


@pytest.fixture(autouse=True)
def _all_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_found_with_type_and_memory():
    assert discover(None, FakeNvml("NVIDIA H200", "NVIDIA A100-SXM4-80GB")) == (
        Device("gpu0", "h200", 80 << 30),
        Device("gpu1", "a100", 80 << 30),
    )


@pytest.mark.parametrize(
    ("setting", "want"), [("1", ["gpu1"]), ("GPU-2222", ["gpu2"]), ("2, 0", ["gpu0", "gpu2"]), ("", ["cpu"])]
)
def test_only_gpus_that_are_visible_to_us_are_offered(monkeypatch, setting, want):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", setting)
    found = [device.device_id for device in discover(None, FakeNvml("NVIDIA H200", "NVIDIA H200", "NVIDIA H200"))]
    if want == ["cpu"]:
        assert all(device_id.startswith("cpu") for device_id in found)
    else:
        assert found == want


def test_cpu_slots_are_declared_or_counted():
    assert discover(3, FakeNvml("NVIDIA H200")) == tuple(Device(f"cpu{i}", "cpu") for i in range(3))
    assert len(discover(None)) == len(os.sched_getaffinity(0))
    assert len(discover(None, FakeNvml())) == len(os.sched_getaffinity(0))
    with pytest.raises(InvalidInput, match="at least 1"):
        discover(0)


def test_product_names_become_types():
    names = ("Tesla V100-SXM2-16GB", "NVIDIA GeForce RTX 3090", "NVIDIA H100 80GB HBM3", "NVIDIA A10G", "NVIDIA L4")
    assert [gpu_type(name) for name in names] == ["v100", "rtx3090", "h100", "a10g", "l4"]
    assert gpu_type("NVIDIA RTX 6000 Ada Generation") == "rtx6000ada"
    assert gpu_type("NVIDIA") == "gpu"


def test_processes_of_others_block_a_device_and_ours_do_not(site, monkeypatch):
    monkeypatch.setattr("tierline.backends.jobs.local._FOREIGN_LOOK_S", 0.02)
    nvml = FakeNvml("NVIDIA H200", "NVIDIA H200")
    backend = site.open(nvml=nvml, devices=discover(None, nvml))
    # Our own: a plain one, and one that cleared its environment; both must not count as foreign.
    site.script("a", "import subprocess; subprocess.run(['env', '-i', 'sleep', '1000'])")
    site.start("a", devices=("gpu0",))
    site.started("a")
    site.eventually(lambda: any(children(pid) for pid in site.alive("a")), "the child")
    ours = set(site.alive("a")).union(*(children(pid) for pid in site.alive("a")))
    assert len(ours) >= 2
    nvml.pids[0] = sorted(ours)
    assert backend.foreign_processes() == {}

    stranger = subprocess.Popen(["sleep", "1000"])
    try:
        nvml.pids[1] = [stranger.pid]
        nvml.pids[0] = [*sorted(ours), 2**22 + 1]  # a pid of another namespace, on a device that our job holds
        assert backend.foreign_processes() == {"gpu1": (stranger.pid,)}
        blocked = DevicesBlocked("here", ("gpu1",), f"used by process {stranger.pid} (sleep)")
        site.eventually(lambda: blocked in site.clock.events, "the block")
    finally:
        stranger.kill()
        stranger.wait()
    nvml.pids[1] = []
    free, blocks = DevicesBlocked("here", (), "free again"), [DevicesBlocked("here", (), "free again"), blocked]
    site.eventually(lambda: told(site) == [*blocks, free], "the end of the block")


def told(site) -> list[DevicesBlocked]:
    return [event for event in list(site.clock.events) if isinstance(event, DevicesBlocked)]


def test_a_new_daemon_says_what_it_finds_before_anything_is_placed(site):
    """The scheduler remembers what the last daemon saw; a stranger may have come or gone since."""
    nvml = FakeNvml("NVIDIA H200")
    nvml.pids[0] = [2**22 + 1]
    site.open(nvml=nvml, devices=discover(None, nvml))
    assert [event.device_ids for event in told(site)] == [("gpu0",)]
    site.backends[-1].close()
    nvml.pids[0] = []
    site.open(nvml=nvml, devices=discover(None, nvml))
    assert [event.device_ids for event in told(site)] == [("gpu0",), ()]


def children(pid: int) -> set[int]:
    try:
        with open(f"/proc/{pid}/task/{pid}/children") as file:
            return {int(word) for word in file.read().split()}
    except OSError:
        return set()


def test_a_strangers_gpu_is_given_to_nobody_until_the_stranger_has_left(site, monkeypatch):
    """The whole way: NVML, backend, loop, scheduler, and back to a process."""
    monkeypatch.setattr("tierline.backends.jobs.local._FOREIGN_LOOK_S", 0.02)
    nvml = FakeNvml("NVIDIA H200", "NVIDIA H200")
    nvml.pids[1] = [2**22 + 1]
    clock = WallClock()
    scheduler = JobScheduler(make_policy("fifo"))
    site.clock = clock
    backend = site.open(nvml=nvml, devices=discover(None, nvml))
    driver = Driver(scheduler, backend, clock)
    driver.submit([NodeJoined(Node("here", discover(None, nvml)))])
    loop = threading.Thread(target=driver.run)
    loop.start()
    try:
        jobs = [site.job(name, ("sleep", "1000")) for name in ("a", "b")]
        site.eventually(lambda: blocked(driver, scheduler) == ["gpu1"], "the block")
        driver.submit([JobSubmitted(job) for job in jobs])
        site.eventually(lambda: phases(driver, scheduler) == {"a": "running", "b": "queued"}, "one runs, one waits")
        nvml.pids[1] = []
        site.eventually(lambda: phases(driver, scheduler) == {"a": "running", "b": "running"}, "both run")
        visible = b"CUDA_VISIBLE_DEVICES=1"
        assert all(visible in environment(pid) for pid in site.alive("b"))
    finally:
        clock.close()
        loop.join()


def blocked(driver, scheduler) -> list[str]:
    return [device.device_id for device in driver.query(lambda: scheduler.cluster(0)).devices if device.blocked]


def phases(driver, scheduler) -> dict[str, str]:
    return {status.job_id: status.phase for status in driver.query(lambda: scheduler.statuses(0))}
