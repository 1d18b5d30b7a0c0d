"""The preload library over the fake driver, from outside: real processes under LD_PRELOAD, through every door."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

LIMIT_S = 90.0
DLOPEN_DOORS = ("dlsym", "dlsym-old", "gpa1", "gpa2", "gpa2-12", "gpa2-ptds", "gpa-self")
LINKED_DOORS = ("plain", "default", "next", "next-behind")
BEST_EFFORT, HIGH = 1, 0


@dataclass
class World:
    """One region, one device, and programs that are run in it."""

    folder: Path
    client: Path
    linked: Path
    dump: Path
    interposer: Path
    drivers: Path
    running: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def region_path(self) -> Path:
        return self.folder / "region"

    def env(self, preload: bool = True, /, **extra: str) -> dict[str, str]:
        base = {name: value for name, value in os.environ.items() if not name.startswith(("TIERLINE_", "FAKECUDA_"))}
        base |= {"LD_LIBRARY_PATH": str(self.drivers), "TIERLINE_LOG": str(self.folder / "log")}
        if preload:
            base |= {
                "LD_PRELOAD": str(self.interposer),
                "TIERLINE_ARBITER": str(self.region_path),
                "FAKECUDA_STRICT": "1",
            }
            base |= {"TIERLINE_CLIENT": "me"}
        return base | extra

    def start(self, door: str, action: str, number: int = 10, **extra: str) -> subprocess.Popen[str]:
        program = self.linked if door in LINKED_DOORS else self.client
        process = subprocess.Popen(
            [program, door, action, str(number)],
            env=self.env(**extra),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.running.append(process)
        return process

    def finish(self, process: subprocess.Popen[str]) -> Any:
        out, err = process.communicate(timeout=LIMIT_S)
        assert process.returncode == 0, f"exit code {process.returncode}: {err}"
        return json.loads(out)

    def run(self, door: str, action: str, number: int = 10, **extra: str) -> Any:
        return self.finish(self.start(door, action, number, **extra))

    def region(self) -> Any:
        done = subprocess.run(
            [self.dump, self.region_path], capture_output=True, text=True, timeout=LIMIT_S, check=True
        )
        return json.loads(done.stdout)

    def statistics(self, label: str = "me") -> dict[str, int]:
        (found,) = [client for client in self.region()["clients"] if client["label"] == label]
        return dict(found)

    def complaints(self) -> str:
        log = self.folder / "log"
        return log.read_text() if log.exists() else ""


@pytest.fixture
def world(tmp_path: Path, native_bin: Callable[[str], Path], interposer: Path, fake_driver: Path) -> Iterator[World]:
    made = World(
        tmp_path,
        native_bin("interpose_client"),
        native_bin("interpose_client_linked"),
        native_bin("interpose_region"),
        interposer,
        fake_driver,
    )
    yield made
    for process in made.running:
        if process.poll() is None:
            process.kill()
        process.communicate()


def summary(log: Path) -> Counter[str]:
    """Calls of the fake driver by symbol, of the whole process."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return Counter(next(line["summary"] for line in lines if "summary" in line))


def calls(log: Path, symbol: str) -> list[dict[str, Any]]:
    return [line for line in map(json.loads, log.read_text().splitlines()) if line.get("call") == symbol]


# In strict mode the fake driver fails a launch that did not come through the gate: the exit code alone tells.


@pytest.mark.parametrize("door", DLOPEN_DOORS + LINKED_DOORS)
def test_every_door_leads_through_the_gate(world: World, door: str) -> None:
    world.run(door, "launch", 10)
    seen = world.statistics()
    assert (seen["launches"], seen["at_once"], seen["bypassed"]) == (10, 10, 0)
    assert world.complaints() == ""


def test_without_the_library_strict_mode_refuses(world: World) -> None:
    process = subprocess.run(
        [world.client, "dlsym", "launch"],
        env=world.env(False, FAKECUDA_STRICT="1"),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert process.returncode == 1
    assert "cuLaunchKernel" in process.stderr


def test_switched_off_it_does_nothing(world: World) -> None:
    world.run("gpa2", "launch", 5, TIERLINE_KERNELS="off", FAKECUDA_STRICT="0")
    assert not world.region_path.exists()


def test_arguments_are_read_before_the_launch_returns(world: World) -> None:
    # The client overwrites pointer and values right after each launch; launch i had i and 7.
    log = world.folder / "calls"
    world.run("gpa2", "launch", 8, FAKECUDA_LOG=str(log))
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    arguments = [line["args"] for line in lines if "args" in line]
    assert arguments == [i.to_bytes(8, "little").hex() + (7).to_bytes(4, "little").hex() for i in range(8)]


@pytest.mark.parametrize("door", ["gpa2", "gpa2-ptds", "plain"])
def test_capture_in_the_strictest_mode_with_the_poller_at_work(world: World, door: str) -> None:
    world.run(door, "capture", 5)
    seen = world.statistics()
    assert seen["bypassed"] == 10  # two launches in each of five captures
    graphs = [kernel for kernel in world.region()["kernels"] if kernel["name"] == "graph of 2 kernels"]
    assert [kernel["launches"] for kernel in graphs] == [15]


@pytest.mark.parametrize("action", ["default-stream", "threads", "events", "streams", "refused", "fork"])
@pytest.mark.parametrize("door", ["gpa2", "gpa2-ptds"])
def test_programs_run_as_ever(world: World, door: str, action: str) -> None:
    world.run(door, action, 20)
    after = world.region()
    assert (after["waiting"], after["active"], after["sm_ppm"]) == (0, 0, 0)
    assert world.statistics()["forced"] == 0
    assert world.complaints() == ""


@pytest.mark.parametrize(("door", "action", "number"), [("gpa2", "streams", 1500), ("gpa2-ptds", "many-threads", 300)])
def test_streams_that_come_and_go_do_not_fill_the_region(world: World, door: str, action: str, number: int) -> None:
    # The region has room for 256 streams at a time; the fake driver for fewer threads with a default stream of their own.
    world.run(door, action, number)
    seen = world.statistics()
    assert (seen["launches"], seen["overflowed"]) == (number, 0)


def test_collectives_and_cooperative_launches_are_exempt(world: World) -> None:
    world.run("gpa2", "exempt", 5)
    seen = world.statistics()
    assert (seen["launches"], seen["bypassed"], seen["at_once"]) == (7, 7, 0)


def test_a_dependent_launch_joins_its_predecessor(world: World) -> None:
    world.run("gpa2", "dependent", 5)
    seen = world.statistics()
    assert (seen["launches"], seen["bypassed"], seen["at_once"]) == (10, 5, 5)


def test_unknown_kernels_are_learnt(world: World) -> None:
    world.run("gpa2", "launch", 5)
    (kernel,) = world.region()["kernels"]
    assert (kernel["name"], kernel["source"], kernel["grid"]) == ("compute", "assumed", [132, 1, 1])
    assert kernel["samples"] >= 3
    assert kernel["duration_ns"] > 0
    assert (kernel["registers"], kernel["occupancy"]) == (32, 8)


def test_a_profile_spares_the_learning(world: World) -> None:
    profile = world.folder / "profile.csv"
    profile.write_text("name,duration_ns,sm_util,bw_util,source\ncompute,5000,0.5,0.25,ncu\n")
    world.run("gpa2", "launch", 5, TIERLINE_PROFILE=str(profile))
    (kernel,) = world.region()["kernels"]
    assert (kernel["source"], kernel["samples"], kernel["duration_ns"]) == ("counters", 0, 5000)


def test_a_library_call_tags_its_launches_with_their_shape(world: World) -> None:
    libraries = f"{world.client.parent / 'blas'}:{world.drivers}"
    world.run("gpa2", "gemm", 2, LD_LIBRARY_PATH=libraries)
    kernels = world.region()["kernels"]
    work = sorted((kernel["name"], kernel["launches"], kernel["flops"], kernel["bytes"]) for kernel in kernels)
    m, n, k = 512, 256, 128
    assert work == [
        ("compute", 1, 0, 0),  # the same kernel and shape without the call: another key
        ("compute", 2, 2 * m * n * k, 2 * (m * k + k * n + m * n)),
        ("splitKreduce_kernel", 2, 0, 0),  # a helper, though it comes first
    ]


def test_a_high_priority_launch_adds_no_driver_call(world: World) -> None:
    bare, with_it = world.folder / "bare", world.folder / "with"
    profile = world.folder / "profile.csv"
    profile.write_text("name,duration_ns,sm_util,bw_util\ncompute,5000,0.5,0.25\n")
    few, many = 10, 210
    counts: dict[tuple[bool, int], Counter[str]] = {}
    for number in (few, many):
        subprocess.run(
            [world.client, "gpa2", "launch", str(number)],
            env=world.env(False, FAKECUDA_LOG=f"{bare}{number}"),
            check=True,
            timeout=LIMIT_S,
        )
        extra = {"TIERLINE_PRIORITY": "high", "TIERLINE_PROFILE": str(profile), "TIERLINE_ARBITER": ""}
        world.run("gpa2", "launch", number, FAKECUDA_LOG=f"{with_it}{number}", **extra)
        counts[False, number] = summary(Path(f"{bare}{number}"))
        counts[True, number] = summary(Path(f"{with_it}{number}"))
    # What 200 launches more cost in driver calls is the same with the library and without it.
    grown = {here: counts[here, many].total() - counts[here, few].total() for here in (False, True)}
    assert grown[True] == grown[False] == many - few


def test_best_effort_adds_at_most_one_driver_call_a_launch(world: World) -> None:
    profile, log = world.folder / "profile.csv", world.folder / "calls"
    profile.write_text(
        "name,duration_ns,sm_util,bw_util,source\ncompute,9000000,0.3,0.1,ncu\nmemory,400000,0.3,0.3,ncu\n"
    )
    common = shared(world) | {"TIERLINE_PROFILE": str(profile)}
    high = world.start("gpa2", "announce", 100, TIERLINE_CLIENT="high", TIERLINE_PRIORITY="high", **common)
    assert high.stdout is not None
    assert high.stdout.readline()
    world.run("dlsym", "memory", 200, TIERLINE_CLIENT="low", FAKECUDA_LOG=str(log), **common)
    counted = summary(log)
    assert counted["cuLaunchKernel"] == 200
    assert 0 < counted["cuEventRecord"] <= 200
    assert counted["cuEventCreate"] < 200  # events are used again


def test_memory_runs_out_in_its_client(world: World) -> None:
    told = world.run("gpa2", "oom", TIERLINE_MEMORY=str(10 << 20))
    assert told == {"allocated": 10, "result": 2, "free": 10 << 20, "total": 10 << 20, "left": 0}
    assert world.statistics()["denied"] == 1
    assert world.statistics()["memory_bytes"] == 0  # after it left
    # The neighbour in the same region has no cap.
    other = world.run("gpa2", "oom", TIERLINE_CLIENT="other", FAKECUDA_MEMORY=str(64 << 20))
    assert other["allocated"] == 64
    assert world.statistics("other")["denied"] == 0


def test_several_clients_in_one_process(world: World) -> None:
    world.run("gpa2", "clients", 6)
    first, second, own = (world.statistics(label) for label in ("first", "second", "me"))
    assert (first["priority"], second["priority"]) == (HIGH, BEST_EFFORT)
    assert first["launches"] == 12  # its own thread, and one without a tag in its stream
    assert second["launches"] == 18  # and the stream that was bound to it
    assert own["launches"] == 2  # after they ended
    assert (first["denied"], second["denied"], own["denied"]) == (1, 1, 0)


def shared(world: World) -> dict[str, str]:
    return {"FAKECUDA_SHARED": str(world.folder / "device"), "FAKECUDA_CLOCK": "wall"}


def test_two_processes_share_one_device_and_one_region(world: World) -> None:
    profile = world.folder / "profile.csv"
    profile.write_text(
        "name,duration_ns,sm_util,bw_util,source\ncompute,9000000,0.9,0.1,ncu\nmemory,400000,0.9,0.9,ncu\n"
    )
    common = shared(world) | {"TIERLINE_PROFILE": str(profile)}
    high = world.start("gpa2", "announce", 100, TIERLINE_CLIENT="high", TIERLINE_PRIORITY="high", **common)
    assert high.stdout is not None
    assert json.loads(high.stdout.readline())["action"] == "announce"  # a second of work is in flight
    world.run("dlsym", "memory", 200, TIERLINE_CLIENT="low", **common)
    assert high.wait(timeout=LIMIT_S) == 0
    assert world.statistics("high")["waited"] == 0  # latency mode
    assert world.statistics("low")["launches"] == 200
    assert world.statistics("low")["waited"] > 0  # the two do not fit
    assert world.statistics("low")["forced"] == 0
    assert world.region()["active"] == 0


POLICIES = ("interference", "sequential", "free", "orion", "reef", "tgs", "lanes", "pair", "gate")


@pytest.mark.parametrize("mode", ["strict", "latency"])
@pytest.mark.parametrize("policy", POLICIES)
def test_six_clients_that_do_not_fit_all_come_to_their_end(world: World, policy: str, mode: str) -> None:
    world.run("gpa2", "contend", 15, TIERLINE_POLICY=policy, TIERLINE_MODE=mode, FAKECUDA_CLOCK="wall")
    after = world.region()
    assert (after["waiting"], after["active"], after["sm_ppm"]) == (0, 0, 0)
    assert sum(client["forced"] for client in after["clients"]) == 0


def test_a_client_killed_while_it_holds_the_device_is_reaped(world: World) -> None:
    holder = world.start("gpa2", "hold", 50, TIERLINE_CLIENT="holder", **shared(world))
    assert holder.stdout is not None
    assert json.loads(holder.stdout.readline())["action"] == "hold"
    assert world.region()["active"] == 1
    holder.send_signal(signal.SIGKILL)
    holder.wait(timeout=LIMIT_S)
    world.run("gpa2", "launch", 5, TIERLINE_CLIENT="next", **shared(world))
    after = world.region()
    assert (after["reaped"], after["active"], after["waiting"]) == (1, 0, 0)
    assert world.statistics("next")["forced"] == 0


@pytest.mark.parametrize(
    "symbol", ["cuEventCreate", "cuEventRecord", "cuEventQuery", "cuFuncGetAttribute", "cuStreamGetCtx"]
)
def test_failing_calls_of_its_own_leave_the_program_alone(world: World, symbol: str) -> None:
    world.run("gpa2", "launch", 20, FAKECUDA_FAIL=f"{symbol}:*:999")
    assert world.statistics()["launches"] == 20


def test_an_unusable_region_passes_everything_and_says_so(world: World) -> None:
    missing = world.folder / "no" / "such" / "folder" / "region"
    world.run("gpa2", "launch", 5, TIERLINE_ARBITER=str(missing), FAKECUDA_STRICT="0")
    assert world.complaints().count("cannot make the region") == 1


def test_a_file_that_is_no_region_passes_everything_and_says_so(world: World) -> None:
    world.region_path.write_bytes(b"something else" * 1000)
    world.run("gpa2", "launch", 5, FAKECUDA_STRICT="0")
    assert world.complaints().count("not gated") == 1


def test_a_region_of_another_version_passes_everything_and_says_so(world: World) -> None:
    world.run("gpa2", "launch", 1)
    made = bytearray(world.region_path.read_bytes())
    made[8:12] = (99).to_bytes(4, "little")  # Region::version
    world.region_path.write_bytes(made)
    world.run("gpa2", "launch", 5, FAKECUDA_STRICT="0")
    (line,) = world.complaints().splitlines()
    assert "it is not a region of this version of Tierline; launches are not gated" in line
    assert world.region_path.read_bytes() == bytes(made)


def test_a_region_that_is_deleted_serves_on(world: World) -> None:
    holder = world.start("gpa2", "hold", 5, TIERLINE_CLIENT="holder", FAKECUDA_CLOCK="wall")
    assert holder.stdout is not None
    holder.stdout.readline()
    world.region_path.unlink()
    world.run("gpa2", "launch", 5, TIERLINE_CLIENT="later")  # in a region of its own
    assert [client["label"] for client in world.region()["clients"]] == ["later"]
    assert holder.poll() is None
    assert world.complaints() == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [("TIERLINE_POLICY", "best"), ("TIERLINE_MODE", "x"), ("TIERLINE_PRIORITY", "low"), ("TIERLINE_MEMORY", "10G")],
)
def test_a_variable_that_makes_no_sense_is_told_and_the_default_holds(world: World, name: str, value: str) -> None:
    world.run("gpa2", "launch", 5, **{name: value})
    assert f"{name}='{value}' is not understood" in world.complaints()
    assert world.statistics()["launches"] == 5


def test_a_full_region_passes_and_says_so(world: World) -> None:
    world.run("gpa2", "join-all", 70)
    assert "no room for another client" in world.complaints()


@pytest.mark.parametrize(
    "command",
    [
        ["bash", "-c", "type cd && echo done"],
        ["python3", "-c", "import ctypes, threading; ctypes.CDLL(None).getpid(); print('done')"],
        ["node", "-e", "console.log('done')"],
        ["git", "--version"],
    ],
)
def test_programs_without_cuda_run_unchanged(world: World, command: list[str], tmp_path: Path) -> None:
    def run(env: dict[str, str]) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(command, env=env, capture_output=True, text=True, timeout=LIMIT_S)
        except FileNotFoundError:
            pytest.skip(f"there is no {command[0]} here")

    bare, preloaded = run(world.env(False)), run(world.env())
    assert (bare.returncode, bare.stdout, bare.stderr) == (preloaded.returncode, preloaded.stdout, preloaded.stderr)
    assert not world.region_path.exists()


def test_a_program_that_only_looks_for_cuda_finds_none(world: World) -> None:
    # Our own exports must not be taken for a driver.
    code = (
        "import ctypes\n"
        "def there(name):\n"
        "    try: return bool(getattr(ctypes.CDLL(None), name))\n"
        "    except AttributeError: return False\n"
        "print([there(n) for n in ('cuInit', 'cuLaunchKernel_ptsz', 'cublasGemmEx', 'getpid')])\n"
    )
    env = world.env()
    del env["LD_LIBRARY_PATH"]
    done = subprocess.run(["python3", "-c", code], env=env, capture_output=True, text=True, timeout=LIMIT_S)
    assert done.stdout.strip() == "[False, False, False, True]"
