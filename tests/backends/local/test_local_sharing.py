"""Two jobs on one device of this machine: the interposer's environment, what its arbiter tells, and all of it live."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from tierline.backends.jobs import sharing as sharing_module
from tierline.backends.jobs.local import LocalBackend
from tierline.backends.jobs.sharing import DeviceSharing, check_sharing
from tierline.clock import WallClock
from tierline.config import DaemonOptions, build_scheduler, measured_pairs, setting_of
from tierline.core.actions import StartJob
from tierline.core.errors import InvalidInput, MissingNative, NotFound, Refused, TierlineError
from tierline.core.events import JobSubmitted, NodeJoined, PairsMeasured, SlowdownSeen
from tierline.core.nouns import NS_PER_S, Device, Job, Node, PairSpeed
from tierline.kernels import environment, native
from tierline.kernels.environment import fake_environment, fake_folder
from tierline.kernels.place import manager_pid, managing, place_of, take_region
from tierline.kernels.region import ClientSeen
from tierline.runtime.driver import Driver

SECOND = NS_PER_S


def client(
    name: str,
    launches: int,
    *,
    predicted: int = 0,
    observed: int = 0,
    wait: int = 0,
    here: bool = True,
    at_gate: bool = False,
) -> ClientSeen:
    blank = {field.name: 0 for field in dataclasses.fields(ClientSeen)}
    told = {"label": name, "name": name, "priority": "high", "is_here": here, "waits": (), "is_waiting": at_gate}
    busy = {"launches": launches, "predicted_busy_ns": predicted, "observed_busy_ns": observed, "wait_ns": wait}
    return ClientSeen(**{**blank, **told, **busy})  # type: ignore[arg-type]


class Arbiter:
    """What `read_region` answers, look by look."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.clients: tuple[ClientSeen, ...] = ()
        monkeypatch.setattr(sharing_module.region, "read_region", lambda path, changes: self)


@pytest.fixture
def arbiter(monkeypatch: pytest.MonkeyPatch) -> Arbiter:
    return Arbiter(monkeypatch)


def look(sharing: DeviceSharing, at_s: float, *jobs: str, device: str = "cpu0") -> list[SlowdownSeen]:
    return sharing.look(int(at_s * SECOND), [((job, 1), (device,)) for job in jobs])


def test_speed_is_the_pace_beside_another_over_the_pace_alone(tmp_path: Path, arbiter: Arbiter) -> None:
    sharing = DeviceSharing(tmp_path, window_s=0.0)
    arbiter.clients = (client("r", 0),)
    assert look(sharing, 0, "r") == []
    arbiter.clients = (client("r", 1000),)
    assert look(sharing, 10, "r") == []
    arbiter.clients = (client("r", 1100), client("j", 5))
    assert look(sharing, 11, "r", "j") == []  # it was not beside j all the time
    arbiter.clients = (client("r", 1100 + 600), client("j", 5))
    (seen,) = look(sharing, 21, "r", "j")  # j launched nothing: nothing is known of it
    assert seen == SlowdownSeen("r", 1, ("j",), pytest.approx(0.6), 10 * SECOND, 600)  # type: ignore[arg-type]
    arbiter.clients = (client("r", 1700 + 5000), client("j", 5))
    assert look(sharing, 31, "r", "j")[0].speed == 1.0  # no job runs faster beside another


def test_a_job_that_never_was_alone_is_judged_by_the_time_it_lost(tmp_path: Path, arbiter: Arbiter) -> None:
    sharing = DeviceSharing(tmp_path, window_s=0.0)
    arbiter.clients = (client("r", 0), client("j", 0))
    look(sharing, 0, "r", "j")
    arbiter.clients = (client("r", 9), client("j", 9, predicted=4 * SECOND, observed=6 * SECOND, wait=2 * SECOND))
    (seen,) = look(sharing, 10, "r", "j")  # of r's kernels too little was observed
    assert (seen.job_id, seen.speed) == ("j", 0.6)  # 2 s at the gate, kernels 2 s longer, of 10 s
    arbiter.clients = (client("r", 9), client("j", 99, predicted=4 * SECOND, observed=9 * SECOND, wait=12 * SECOND))
    assert look(sharing, 20, "r", "j")[0].speed == 0.0  # never less than nothing


def test_a_job_that_waits_at_the_gate_all_the_time_is_seen_to_stand_still(tmp_path: Path, arbiter: Arbiter) -> None:
    sharing = DeviceSharing(tmp_path, window_s=0.0)
    arbiter.clients = (client("r", 0), client("j", 1, at_gate=True))
    look(sharing, 0, "r", "j")
    (seen,) = look(sharing, 10, "r", "j")  # r is silent because it has nothing to do
    assert (seen.job_id, seen.speed, seen.launches) == ("j", 0.0, 0)


def test_processes_of_one_job_count_together_and_those_that_are_gone_do_not(tmp_path: Path, arbiter: Arbiter) -> None:
    sharing = DeviceSharing(tmp_path, window_s=0.0)
    arbiter.clients = (client("r", 100), client("r", 50), client("r", 10_000, here=False))
    look(sharing, 0, "r")
    arbiter.clients = (client("r", 150), client("r", 100), client("r", 10_000, here=False))
    look(sharing, 10, "r")
    arbiter.clients = (client("r", 150), client("r", 100))
    look(sharing, 20, "r", "j")
    arbiter.clients = (client("r", 175), client("r", 125))
    assert look(sharing, 30, "r", "j")[0].speed == pytest.approx(0.5)


def test_windows_are_kept_and_an_attempt_that_ended_is_forgotten(tmp_path: Path, arbiter: Arbiter) -> None:
    sharing = DeviceSharing(tmp_path, window_s=3600.0)
    arbiter.clients = (client("r", 0),)
    look(sharing, 0, "r")
    arbiter.clients = (client("r", 100),)
    assert look(sharing, 10, "r", "j") == []  # within the window nothing is read
    sharing = DeviceSharing(tmp_path, window_s=0.0)
    look(sharing, 0, "r")
    look(sharing, 10)
    assert not sharing._samples


def test_an_arbiter_that_cannot_be_read_is_told_once_and_harms_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sharing = DeviceSharing(tmp_path, window_s=0.0)
    for at_s in (0, 10, 20):
        assert look(sharing, at_s, "r", "j") == []
    assert [record.message for record in caplog.records if "cannot be read" in record.message][1:] == []


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A library that is there, and arbiters that are made of nothing."""
    folder = tmp_path / "lib"
    folder.mkdir()
    (folder / "libtierline_interpose.so").touch()
    monkeypatch.setattr(environment, "LIB", folder)
    monkeypatch.setattr(native, "make_region", lambda path, *rest: path.touch())
    return folder


def test_a_job_on_one_device_runs_under_the_interposer_and_a_guest_with_the_lower_claim(
    tmp_path: Path, library: Path
) -> None:
    sharing = DeviceSharing(tmp_path)
    host = sharing.environment(Job("r", gpu_memory_bytes=1 << 30), ("cpu0",), False, {"LD_PRELOAD": "/x/own.so"})
    assert host["TIERLINE_ARBITER"] == str(tmp_path / "devices" / "cpu0.region")
    assert (host["TIERLINE_PRIORITY"], host["TIERLINE_CLIENT"], host["TIERLINE_MEMORY"]) == ("high", "r", str(1 << 30))
    assert host["LD_PRELOAD"] == f"{library}/libtierline_interpose.so:/x/own.so"
    guest = sharing.environment(Job("j" * 64), ("cpu0",), True, {})
    assert (guest["TIERLINE_PRIORITY"], guest["TIERLINE_ARBITER"]) == ("best-effort", host["TIERLINE_ARBITER"])
    assert len(guest["TIERLINE_CLIENT"]) == environment.LABEL_BYTES
    assert sharing.environment(Job("gang"), ("gpu0", "gpu1"), False, {}) == {}


def test_the_supervisor_is_told_the_jobs_environment(site, library: Path) -> None:  # type: ignore[no-untyped-def]
    site.open(sharing=DeviceSharing(site.root))
    body = "import os; print(*(os.environ.get(f'TIERLINE_{n}') for n in ('CLIENT', 'PRIORITY', 'JOB_ID')), flush=True)"
    for job_id, shares_with in (("r", ()), ("j", ("r",))):
        # an empty file cannot be preloaded: the loader says so and the program runs
        site.script(job_id, body)
        site.backends[-1].execute(StartJob(job_id, 1, ("cpu0",), False, "test", shares_with=shares_with))
        site.exited(job_id)
    assert "r high r" in site.log("r")
    assert "j best-effort j" in site.log("j")


def test_without_the_library_sharing_is_refused_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(environment, "LIB", tmp_path)
    with pytest.raises(
        MissingNative, match=r"^the preload library .*, without which devices cannot be shared, is missing"
    ):
        check_sharing()


def test_options_of_sharing_are_checked(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"--pairs .* needs --share"):
        DaemonOptions(tmp_path, pairs="x.json")
    with pytest.raises(NotFound, match="--pairs needs a file"):
        measured_pairs(DaemonOptions(tmp_path, share=True, pairs=str(tmp_path / "absent")), ("h200",))
    assert measured_pairs(DaemonOptions(tmp_path, share=True), ("h200",)) == ()
    assert setting_of(DaemonOptions(tmp_path, share=True)).share
    assert build_scheduler(setting_of(DaemonOptions(tmp_path))).packing is None


def test_pairs_of_types_that_the_file_has_go_before_those_of_its_v100(tmp_path: Path) -> None:
    table = {"('x', 1)": {"null": 2.0, "('x', 1)": [1.0, 1.0]}}
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"v100": table, "k80": {"('x', 1)": {"null": 1.0, "('x', 1)": [0.2, 0.2]}}}))
    told = measured_pairs(DaemonOptions(tmp_path, share=True, pairs=str(path)), ("k80", "h200"))
    assert told == (PairSpeed("", "x", "x", 0.5), PairSpeed("k80", "x", "x", 0.2))


def fake_driver() -> bool:
    try:
        check_sharing()
        native.load()
        return (fake_folder() / "fake-program").is_file()
    except TierlineError:
        return False


@pytest.mark.skipif(not fake_driver(), reason="the native half of the kernel tier is not built here")
def test_two_jobs_on_one_declared_device_through_local_the_interposer_and_back(site) -> None:  # type: ignore[no-untyped-def]
    """The whole way: the scheduler packs, both run under the interposer on one simulated device, its arbiter's figures
    come back as events, and what they say is believed."""
    clock = WallClock()
    options = DaemonOptions(site.root, share=True, policy="fifo")
    scheduler = build_scheduler(dataclasses.replace(setting_of(options), fill_ns=0))
    backend = LocalBackend(
        clock, site.root, "local", scheduler.job, 0.02, sharing=DeviceSharing(site.root, window_s=0.3)
    )
    site.backends.append(backend)
    seen: list[SlowdownSeen] = []

    class Journal:
        def append(self, entries):  # type: ignore[no-untyped-def]
            seen.extend(event for _, event, _ in entries if isinstance(event, SlowdownSeen))

    driver = Driver(scheduler, backend, clock, Journal())
    backend.start()
    env = tuple(fake_environment("h200", site.root / "device", {"PATH": os.environ["PATH"]}).items())
    program = str(fake_folder() / "fake-program")

    def job(job_id: str, name: str) -> Job:
        site.jobs[job_id] = Job(
            job_id, argv=(program, name, "--seconds", "60", "--quiet"), env=env, job_type=name, grace_ns=2 * SECOND
        )
        return site.jobs[job_id]

    driver.submit([NodeJoined(Node("local", (Device("cpu0", "cpu"),)))])
    names = ("graph-train", "mlp-train")
    driver.submit([PairsMeasured(tuple(PairSpeed("", one, two, 0.9) for one in names for two in names))])
    driver.submit([JobSubmitted(job("r", "graph-train"))])

    def pump(done):  # type: ignore[no-untyped-def]
        def step() -> bool:
            while (event := clock.next_due()) is not None:
                driver._process([event])
            return bool(done())

        site.eventually(step, "what the jobs do")

    pump(lambda: sharing_paces(backend))  # it has been alone for a while
    driver.submit([JobSubmitted(job("j", "mlp-train"))])
    pump(lambda: {event.job_id for event in seen} == {"r", "j"})
    assert scheduler.status("j", clock.now_ns()).attempt >= 1
    starts = json.loads((site.folder("j") / "attempt-1" / "spec.json").read_text())["env"]
    assert (starts["TIERLINE_PRIORITY"], starts["CUDA_VISIBLE_DEVICES"]) == ("best-effort", "")
    for event in seen:
        assert 0.0 <= event.speed <= 1.0
        assert event.with_jobs == (("j",) if event.job_id == "r" else ("r",))
    believed = scheduler.dump()["interference"]["seen"]
    assert {(kind, beside) for _, kind, beside, *_ in believed} == {names, names[::-1]}


def sharing_paces(backend: LocalBackend) -> bool:
    assert backend._sharing is not None
    return bool(backend._sharing._own_pace)


@pytest.mark.skipif(not fake_driver(), reason="the native half of the kernel tier is not built here")
def test_the_daemon_is_the_only_manager_of_a_gpu_that_it_shares(tmp_path, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    sharing = DeviceSharing(tmp_path / "state")
    place = place_of(0)
    with managing(place), pytest.raises(Refused, match="managed by process"):
        sharing.environment(Job("a"), ("gpu0",), False, {})
    assert sharing.environment(Job("a"), ("gpu0",), False, {})["TIERLINE_ARBITER"] == str(place.region)
    assert manager_pid(place) == os.getpid()
    joined = take_region(place)  # as `tierline run` does: it joins and does not begin anew
    os.close(joined)
    sharing.close()
    assert manager_pid(place) == 0
