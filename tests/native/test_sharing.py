"""The whole of the tier without a GPU: `tierline run` -> interposer -> region -> report, on the fake driver."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

LIMIT_S = 120

LAUNCHES = """
import sys
from tierline.kernels.calibrate import FAKE_IMAGE, FAKE_PROBES
from tierline.kernels.cuda_driver import CudaDriver

def launch(driver, stream, kind, count):
    function = driver.function(driver.module(FAKE_IMAGE), f"probe_{kind}")
    for i in range(count):
        driver.launch(function, *FAKE_PROBES[kind], stream)
        if i % 8 == 7:
            driver.call("cuStreamSynchronize", stream)
"""
ONE_STREAM = (
    LAUNCHES
    + """
with CudaDriver(0) as driver, driver.streams(1) as (stream,):
    launch(driver, stream, sys.argv[1], int(sys.argv[2]))
    driver.synchronize()
print("done")
"""
)
TWO_CLIENTS = (
    LAUNCHES
    + """
import threading
import tierline.kernels

def work(name, priority, kind):
    driver.call("cuCtxSetCurrent", context)
    with driver.streams(1) as (stream,), tierline.kernels.client(priority, name, stream.value):
        launch(driver, stream, kind, 64)
        driver.call("cuStreamSynchronize", stream)

import ctypes
with CudaDriver(0) as driver:
    context = ctypes.c_void_p()
    driver.call("cuCtxGetCurrent", ctypes.byref(context))
    threads = [threading.Thread(target=work, args=a) for a in (("a", "high", "memory"), ("b", "best-effort", "compute"))]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
"""
)
ALLOCATES = """
from tierline.kernels.cuda_driver import CudaDriver, DriverFailed
with CudaDriver(0) as driver:
    for size in (64 << 20, 512 << 20):
        try:
            with driver.device_memory(size):
                print(size >> 20, "MiB")
        except DriverFailed as error:
            print(error)
"""


@pytest.fixture
def folders(tmp_path: Path, interposer: Path, fake_driver: Path) -> dict[str, str]:
    """The environment of the commands: folders of their own."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("TIERLINE_", "FAKECUDA_"))}
    for variable in ("XDG_RUNTIME_DIR", "XDG_DATA_HOME"):
        (tmp_path / variable).mkdir(mode=0o700)
        env[variable] = str(tmp_path / variable)
    return env


def tierline(env: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tierline.cli.main", *words]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False)


def report(env: dict[str, str], *words: str) -> dict:
    done = tierline(env, "kernels", "report", "h200", "--json", *words)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout)


def test_a_program_is_counted_and_its_kernels_are_learnt(folders: dict[str, str], tmp_path: Path) -> None:
    done = tierline(
        folders, "run", "--fake", "h200", "--name", "solo", "--", sys.executable, "-c", ONE_STREAM, "compute", "64"
    )
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert done.stderr == "tierline: solo runs on a simulated device (h200); no GPU is used.\n"
    found = report(folders, "--trace", str(tmp_path / "t.json"))
    assert found["device"] == "h200 (simulated device)"
    (client,) = found["clients"]
    assert (client["name"], client["launches"], client["waited"], client["is_here"]) == ("solo", 64, 0, False)
    (kernel,) = found["kernels"]
    assert (kernel["name"], kernel["launches"], kernel["grid"], kernel["registers"]) == (
        "probe_compute",
        64,
        [1056, 1, 1],
        64,
    )
    assert kernel["source"] != "none"
    assert kernel["duration_ns"] > 0
    slices = [e for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if e["ph"] == "X"]
    assert sum(event["args"]["launches"] for event in slices) == 64
    # What was learnt goes into a file and is known from the first launch on in the next run.
    profile = str(tmp_path / "p.csv")
    assert tierline(folders, "kernels", "profile", "h200", "-o", profile).stdout == f"1 kernels written to {profile}.\n"
    words = ["--fake", "h200", "--profile", profile, "--", sys.executable, "-c", ONE_STREAM, "compute", "1"]
    assert tierline(folders, "run", *words).returncode == 0
    (again,) = report(folders)["kernels"]
    assert (again["key"], again["duration_ns"], again["samples"]) == (kernel["key"], kernel["duration_ns"], 0)


def test_two_programs_share_a_device(folders: dict[str, str], tmp_path: Path) -> None:
    for name, kind, priority in (("serve", "memory", "high"), ("train", "compute", "best-effort")):
        argv = json.dumps([sys.executable, "-c", ONE_STREAM, kind, "200"])
        (tmp_path / f"{name}.toml").write_text(f'argv = {argv}\npriority = "{priority}"\n')
    files = [str(tmp_path / f"{name}.toml") for name in ("serve", "train")]
    done = tierline(folders, "run", "--share", "--fake", "h200", "--mode", "strict", "--json", *files)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [(each["name"], each["exit_code"]) for each in found["programs"]] == [("serve", 0), ("train", 0)]
    assert (found["simulated"], found["policy"], found["mode"]) == (True, "interference", "strict")
    clients = {client["name"]: client for client in found["clients"]}
    assert {name: client["launches"] for name, client in clients.items()} == {"serve": 200, "train": 200}
    assert {name: client["priority"] for name, client in clients.items()} == {"serve": "high", "train": "best-effort"}
    assert {kernel["name"] for kernel in found["kernels"]} == {"probe_memory", "probe_compute"}
    assert report(folders)["clients"] == found["clients"]  # the region outlives its programs


def test_threads_of_one_program_are_clients_of_their_own(folders: dict[str, str]) -> None:
    done = tierline(
        folders, "run", "--fake", "h200", "--name", "both", "--", sys.executable, "-W", "error", "-c", TWO_CLIENTS
    )
    assert done.returncode == 0, done.stderr
    clients = {client["name"]: client for client in report(folders)["clients"]}
    assert {name: (clients[name]["priority"], clients[name]["launches"]) for name in "ab"} == {
        "a": ("high", 64), "b": ("best-effort", 64)
    }  # fmt: skip


def test_memory_beyond_the_cap_is_refused_to_this_program(folders: dict[str, str]) -> None:
    words = ["--fake", "h200", "--memory", "256MiB", "--", sys.executable, "-c", ALLOCATES]
    done = tierline(folders, "run", *words)
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "64 MiB"
    assert "CUDA_ERROR_OUT_OF_MEMORY (2)" in second
    (client,) = report(folders)["clients"]
    assert (client["memory_cap_bytes"], client["denied_allocations"]) == (256 << 20, 1)


def test_the_fake_drivers_own_programs_are_found(folders: dict[str, str]) -> None:
    done = tierline(folders, "run", "--fake", "a100", "--", "fake-program", "mlp-train", "--iterations", "2", "--quiet")
    assert done.returncode == 0, done.stderr
    listed = tierline(folders, "kernels", "list").stdout
    assert "simulated-a100" in listed


def test_a_program_without_cuda_and_one_that_switches_off(folders: dict[str, str]) -> None:
    done = tierline(folders, "run", "--fake", "h200", "--", sys.executable, "-c", "print('no CUDA')")
    assert (done.returncode, done.stdout) == (0, "no CUDA\n")
    assert "No program has used this device yet" in tierline(folders, "kernels", "report", "h200").stdout
    off = folders | {"TIERLINE_KERNELS": "off"}
    done = tierline(off, "run", "--fake", "h200", "--", sys.executable, "-c", ONE_STREAM, "compute", "8")
    assert (done.returncode, done.stdout) == (0, "done\n")
    assert report(folders)["clients"] == []
