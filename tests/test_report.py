"""What a training script imports: inside a job, outside of one, in several processes, on a full disk."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import tierline

module = sys.modules["tierline.report"]  # the name in the package is the function
SOURCE = str(Path(__file__).resolve().parents[1] / "src")
NAMES = ("REPORT_FILE", "CHECKPOINT_DIR", "RESUME", "ATTEMPT", "REPORT_RANK")


@pytest.fixture(autouse=True)
def _outside(monkeypatch, tmp_path):
    """Every test begins outside of Tierline, in a folder of its own, with the module as freshly imported."""
    for name in (*(f"TIERLINE_{name}" for name in NAMES), "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for name, value in (("_stop_seen", False), ("_handler_tried", False), ("_warned", False)):
        monkeypatch.setattr(module, name, value)
    earlier = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, earlier)


@pytest.fixture
def reports(monkeypatch, tmp_path) -> Path:
    path = tmp_path / "run" / "reports.jsonl"
    path.parent.mkdir()
    monkeypatch.setenv("TIERLINE_REPORT_FILE", str(path))
    return path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_importing_brings_nothing_but_the_standard_library():
    code = "import sys; sys.path.insert(0, sys.argv[1]); before = set(sys.modules); import tierline; "
    code += "print(*sorted(set(sys.modules) - before))"
    out = subprocess.run([sys.executable, "-I", "-S", "-c", code, SOURCE], capture_output=True, text=True, check=True)
    loaded = {name.split(".")[0] for name in out.stdout.split()}
    assert loaded - {"tierline"} <= set(sys.stdlib_module_names)
    assert {name for name in out.stdout.split() if name.startswith("tierline.")} == {"tierline.report"}
    heavy = {"asyncio", "pathlib", "json", "dataclasses", "inspect", "subprocess", "logging", "ctypes"}
    assert not loaded & heavy, "imports that every training script would pay for"


def test_outside_tierline_nothing_happens(tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    tierline.report(1, loss=object())
    assert tierline.should_stop() is False
    assert module.resuming() is False
    assert signal.getsignal(signal.SIGTERM) is handler
    assert list(tmp_path.iterdir()) == []


def test_reports_are_json_lines(reports):
    tierline.report(1, loss=0.5, accuracy=0.25)
    tierline.report(2, 1e9)
    tierline.report(3, loss=float("nan"), up=float("inf"), down=float("-inf"))
    first, second, third = lines(reports)
    assert list(first) == ["step", "loss", "accuracy", "time_ns"]
    assert (first["step"], first["loss"], first["accuracy"]) == (1, 0.5, 0.25)
    assert second["loss"] == 1e9
    assert (third["loss"], third["up"], third["down"]) == ("nan", "inf", "-inf")
    assert first["time_ns"] <= second["time_ns"]


def test_numbers_of_other_libraries_are_taken(reports):
    numpy = pytest.importorskip("numpy")
    tierline.report(numpy.int64(4), loss=numpy.float32(0.5))
    assert (lines(reports)[0]["step"], lines(reports)[0]["loss"]) == (4, 0.5)


@pytest.mark.parametrize("bad", ["high", [1, 2], object()])
def test_what_is_no_number_is_refused_inside_a_job(reports, bad):
    with pytest.raises(TypeError, match="a number is allowed"):
        tierline.report(1, loss=bad)
    with pytest.raises(TypeError, match=r"step=.*a whole number is allowed"):
        tierline.report(bad, loss=1.0)
    assert lines(reports) == []


@pytest.mark.parametrize(
    ("variables", "speaks"),
    [
        ({}, True),
        ({"RANK": "0"}, True),
        ({"RANK": "1"}, False),
        ({"SLURM_PROCID": "2"}, False),
        ({"RANK": "0", "SLURM_PROCID": "2"}, True),
        ({"RANK": "1", "TIERLINE_REPORT_RANK": "1"}, True),
        ({"RANK": "1", "TIERLINE_REPORT_RANK": "all"}, True),
    ],
)
def test_only_one_rank_reports(reports, monkeypatch, variables, speaks):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tierline.report(1, loss=0.5)
    assert bool(lines(reports)) is speaks


def test_lines_of_many_processes_stay_whole(reports):
    code = "import tierline\nfor k in range(500): tierline.report(k, loss=0.123456789, metric=1.0)"
    workers = [
        subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": SOURCE}) for _ in range(3)
    ]
    assert [worker.wait() for worker in workers] == [0, 0, 0]
    assert sorted(line["step"] for line in lines(reports)) == sorted(list(range(500)) * 3)


def test_a_full_disk_drops_the_report_and_warns_once(reports, capfd):
    reports.parent.rmdir()
    tierline.report(1, loss=0.5)
    tierline.report(2, loss=0.5)
    assert capfd.readouterr().err.count("cannot write a report") == 1
    reports.parent.mkdir()
    tierline.report(3, loss=0.5)
    assert [line["step"] for line in lines(reports)] == [3]


def test_should_stop_after_sigterm_and_an_earlier_handler_still_runs(reports):
    seen = []
    signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
    assert tierline.should_stop() is False
    os.kill(os.getpid(), signal.SIGTERM)
    assert tierline.should_stop() is True
    assert seen == [signal.SIGTERM]


def test_should_stop_when_the_flag_in_the_run_folder_is_raised(reports, monkeypatch):
    monkeypatch.setenv("TIERLINE_ATTEMPT", "2")
    answers = []
    thread = threading.Thread(target=lambda: answers.append(tierline.should_stop()))  # no handler can be set there
    thread.start()
    thread.join()
    (reports.parent / "attempt-2").mkdir()
    (reports.parent / "attempt-2" / "stop").touch()
    assert answers == [False]
    assert tierline.should_stop() is True


def test_resuming(monkeypatch):
    monkeypatch.setenv("TIERLINE_RESUME", "1")
    assert module.resuming() is True


def test_the_checkpoint_folder(tmp_path, monkeypatch):
    assert tierline.checkpoint_dir() == Path("checkpoints")
    assert (tmp_path / "checkpoints").is_dir()
    monkeypatch.setenv("TIERLINE_CHECKPOINT_DIR", str(tmp_path / "a" / "b"))
    assert tierline.checkpoint_dir() == tmp_path / "a" / "b"
    assert (tmp_path / "a" / "b").is_dir()


def test_checkpoints_are_saved_by_content_or_by_a_function(tmp_path):
    assert tierline.save_checkpoint("one", b"content") == Path("checkpoints/one")
    tierline.save_checkpoint("deep/two", lambda file: file.write(b"written"))
    tierline.save_checkpoint(tmp_path / "three", b"elsewhere")
    assert Path("checkpoints/one").read_bytes() == b"content"
    assert Path("checkpoints/deep/two").read_bytes() == b"written"
    assert (tmp_path / "three").read_bytes() == b"elsewhere"


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path):
    tierline.save_checkpoint("state", b"old")

    def fails(file):
        file.write(b"half of the new")
        file.flush()
        raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError, match="out of ideas"):
        tierline.save_checkpoint("state", fails)
    assert os.listdir("checkpoints") == ["state"]
    assert Path("checkpoints/state").read_bytes() == b"old"


def test_a_save_beyond_the_disk_leaves_the_old_checkpoint(tmp_path):
    tierline.save_checkpoint("state", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            tierline.save_checkpoint("state", bytes(100_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir("checkpoints") == ["state"]
    assert Path("checkpoints/state").read_bytes() == b"old"
