"""scripts/gpu kernels without a GPU: arguments, the record and its page, children, and the programs on torch's CPU device.

The figures in here are made up, and every page made from them says so.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS, NATIVE_TESTS = ROOT / "scripts", ROOT / "native" / "tests"
TINY = ["--device", "cpu", "--size", "tiny"]
LIMIT_S = 120


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.fixture
def report() -> ModuleType:
    return importlib.import_module("gpu_kernels_report")


@pytest.fixture
def children() -> ModuleType:
    return importlib.import_module("gpu_children")


def run(*argv: str, env: dict[str, str] | None = None, said: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv,
        input=said,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )


# --- arguments ----------------------------------------------------------------------------------------------------------


def test_without_a_gpu_the_script_says_so_and_ends_well(tmp_path: Path) -> None:
    for tool in ("bash", "dirname", "sed", "grep"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or "")
    for part in ([], ["jobs"], ["kernels"], ["serving"]):
        done = run("bash", str(SCRIPTS / "gpu"), *part, env={"PATH": str(tmp_path)})
        assert (done.returncode, "no NVIDIA GPU" in done.stdout) == (0, True), done.stderr


def test_the_parts_are_named() -> None:
    done = run("bash", str(SCRIPTS / "gpu"), "kernals")
    assert (done.returncode, done.stderr) == (
        2,
        "scripts/gpu: unknown part 'kernals'; there are jobs, kernels and serving.\n",
    )
    assert "scripts/gpu kernels" in run("bash", str(SCRIPTS / "gpu"), "--help").stdout


def test_the_plan_lists_every_step_and_runs_none() -> None:
    main = importlib.import_module("gpu_kernels")
    done = run("bash", str(SCRIPTS / "gpu"), "kernels", "--plan", env={"PYTHON": sys.executable})
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [step.name for step in main.STEPS]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--only", "works,overhaed"], "--only overhaed: the steps are probe, calibrate, works"),
        (["--device", "cpu"], "it is not written to docs/results: name a folder, --out"),
        (["--seconds", "0"], "--seconds is above 0"),
    ],
)
def test_wrong_arguments_are_told(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    main = importlib.import_module("gpu_kernels")
    with pytest.raises(SystemExit) as ended:
        main.main(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


# --- figures ------------------------------------------------------------------------------------------------------------


def check_row(wave: str, how: str, losses: list[float], digest: str = "aa") -> dict[str, Any]:
    answers = {"digest": digest, "sums": [3.0]}
    return {"wave": wave, "how": how, "losses": {"conv": losses}, "answers": answers}


def test_losses_are_compared_with_the_same_program_without_the_interposer(report: ModuleType) -> None:
    rows = [
        check_row("without", "eager", [2.0, 1.0]),
        check_row("without", "compile", [2.0, 1.0]),
        check_row("alone", "eager", [2.0, 1.0]),
        check_row("alone", "compile", [2.0, 1.004]),
        check_row("shared", "compile", [2.0, 1.3]),
        {"wave": "shared", "how": "eager", "error": "no answer within 90 s"},
        check_row("alone", "graphs", [2.0, 1.0]),
    ]
    found = [(row["wave"], row["how"], row["verdict"], row.get("identical")) for row in report.same_results(rows)]
    assert found == [
        ("alone", "eager", "same", True),
        ("alone", "compile", "same", False),
        ("shared", "compile", "differs", False),
        ("shared", "eager", "no figure", None),
        ("alone", "graphs", "no figure", None),
    ]


def test_answers_that_differ_in_one_bit_are_not_identical(report: ModuleType) -> None:
    rows = [check_row("without", "eager", [2.0]), check_row("alone", "eager", [2.0], digest="ab")]
    assert [row["identical"] for row in report.same_results(rows)] == [False]


def rounds(*median_ns: float) -> list[dict[str, float]]:
    return [{"median_ns": ns, "p10_ns": ns, "p90_ns": ns} for ns in median_ns]


def test_what_a_launch_costs_is_taken_round_by_round(report: ModuleType) -> None:
    region = {"clients": [client("bursts", launches=100, at_once=90), client("company", launches=50, at_once=0)]}
    rows = [
        {"program": "torch", "client": "plain", "rounds": rounds(3000, 4000, 5000)},  # the machine slows down meanwhile
        {"program": "torch", "client": "high", "rounds": rounds(3100, 4200, 5300), "region": region},
        {"program": "cuda", "client": "high", "rounds": rounds(3100)},
    ]
    (added,) = report.added_ns(rows)
    assert (added["plain_ns"], added["median_ns"], added["least_ns"], added["most_ns"]) == (4000, 200, 100, 300)
    assert (added["rounds"], added["at_once"]) == (3, 0.9)


def test_driver_calls_are_counted_beyond_those_of_the_plain_program(report: ModuleType) -> None:
    rows = [
        {"program": "torch", "client": "plain", "counted": True, "launches": 100, "calls": {"cuLaunchKernel": 100}},
        {"program": "torch", "client": "high", "counted": True, "launches": 100, "calls": {"cuLaunchKernel": 100}},
        {"program": "torch", "client": "best-effort", "counted": True, "launches": 100,
         "calls": {"cuLaunchKernel": 100, "cuEventRecord": 98, "cuEventQuery": 40}},
        {"program": "company", "client": "best-effort", "counted": False, "why": "no CUPTI"},
    ]  # fmt: skip
    high, best_effort, company = report.added_calls(rows)
    assert (high["per_launch"], high["by_name"]) == (0, {})
    assert best_effort["per_launch"] == pytest.approx(0.98)  # the poller's queries go by time
    assert best_effort["by_name"] == {"cuEventRecord": 0.98, "cuEventQuery": 0.4}
    assert company["why"] == "no CUPTI"


def client(label: str, launches: int = 1000, waited: int = 0, forced: int = 0, at_once: int = 1000) -> dict[str, Any]:
    counts = {"launches": launches, "at_once": at_once, "waited": waited, "forced": forced, "bypassed": 0}
    return {"label": label, "priority": "high"} | counts


def server(served: int, p99_s: float, **more: Any) -> dict[str, Any]:
    return {"kind": "serve", "priority": "high", "served": served, "seconds": 4.0, "rate": 200.0,
            "latency": {"count": served, "p99_s": p99_s}} | more  # fmt: skip


def training(steps: int) -> dict[str, Any]:
    return {"kind": "train", "priority": "best-effort", "steps": steps, "seconds": 4.0}


TURNS = {
    "name": "turns",
    "title": "one after another",
    "jobs": {"serve": server(800, 0.004, service_s=0.002), "train": training(400)},
}
PLAIN = {"name": "plain", "title": "plain streams", "jobs": {"serve": server(800, 0.006), "train": training(320)}}


def test_gain_is_the_work_in_units_of_the_time_it_takes_alone(report: ModuleType) -> None:
    figures = report.share_figures(PLAIN, TURNS)
    assert figures["gain"] == pytest.approx(200 * 0.002 + 80 * 0.01)  # 200 requests and 80 steps a second
    assert figures["p99"] == {"serve": pytest.approx(1.5)}
    assert figures["speed"] == {"serve": 1.0, "train": pytest.approx(0.8)}


def test_a_figure_whose_parts_are_missing_is_none(report: ModuleType) -> None:
    assert report.share_figures(PLAIN, {}) == {
        "gain": None,
        "p99": {"serve": None},
        "speed": {"serve": None, "train": None},
    }
    broken = {"jobs": {"serve": server(800, 0.006), "train": {"kind": "train", "error": "OutOfMemoryError"}}}
    assert report.share_figures(broken, TURNS)["gain"] is None


# --- the page -----------------------------------------------------------------------------------------------------------


def record() -> dict[str, Any]:
    works = {
        "state": "ok",
        "rows": [
            check_row("without", "eager", [2.0]),
            check_row("alone", "eager", [2.0]) | {"region": {"clients": [client("eager", launches=4321)]}},
            {"wave": "shared", "how": "eager", "error": "ended with exit code -11"},
        ],
        "tierline_run": {"exit_code": 0, "output": ""},
    }
    overhead = {
        "state": "ok",
        "rows": [
            {"program": "torch", "client": "plain", "rounds": rounds(3000, 3100)},
            {"program": "torch", "client": "high", "rounds": rounds(3400, 3600)},
        ],
        "calls": [{"program": "torch", "client": "high", "counted": False, "why": "no CUPTI"}],
        "missing": ["cuda plain: nvcc is not here"],
    }
    share = {
        "state": "ok",
        "rows": [
            TURNS,
            PLAIN | {"region": {"clients": [client("train", waited=17, forced=2)]}},
            {"name": "reef", "title": "reef", "error": "no answer within 90 s"},
            {"name": "tgs", "title": "tgs", "skipped": "out of time"},
        ],
    }
    lanes = {
        "alone_s": {"gemm": 0.0014, "norm": 0.0005}, "launches": {"gemm": 43, "norm": 120},
        "rows": [
            {"how": "one after another", "sms": [], "seconds": 0.12},
            {"how": "lanes", "sms": [84, 48], "seconds": 0.1},
            {"how": "lanes", "sms": [24], "why": "cuGreenCtxCreate returned CUDA error 914"},
        ],
    }  # fmt: skip
    probe = {"state": "ok", "device": "GPU of a test", "memory_bytes": 1 << 37, "driver": "580.1", "cores": 16,
             "torch": "2.11.0", "python": "3.12.3"}  # fmt: skip
    mps = {"state": "skipped", "why": "MPS is not there"}
    steps = {"probe": probe, "works": works, "overhead": overhead, "share1": share, "lanes": lanes, "mps": mps,
             "tests": {"state": "failed", "why": "RuntimeError: no"}}  # fmt: skip
    return {"date": "2026-11-21", "version": "0.1.0", "synthetic": True, "steps": steps}


def test_the_page_shows_every_cell_and_what_is_missing(report: ModuleType) -> None:
    page = report.render(record())
    for text in (
        "Made-up samples of a test",
        "Measured on 2026-11-21 with GPU of a test (128 GiB), driver 580.1, 16 cores, torch 2.11.0",
        "| eager | under the interposer, alone | same, bit for bit | 4321 | 0 | 0 | 0 |",
        "| eager | under the interposer, three programs on one region | no figure | - | - | - | - |",
        "eager, shared: ended with exit code -11",
        "| torch | high | 3050 | +450 (+400 to +500) | 2 | - |",
        "| torch | high | - | no CUPTI |",
        "Missing: cuda plain: nvcc is not here",
        "| plain streams | 1.20 | 1.50 | 6.00 | serve 1.00, train 0.80 | train: 17 of 1000 waited, 2 forced |",
        "| reef | - | - | - | - | failed (1) |",
        "| tgs | - | - | - | - | not run (2) |",
        "1. no answer within 90 s\n2. out of time",
        "| lanes | 84 + 48 | 100.00 | 1.20 |",
        "| lanes | 24 | - | cuGreenCtxCreate returned CUDA error 914 |",
        "Cut short; what there was by then:\n\n43 matrix products",
        "Not run: MPS is not there",
        "Failed: RuntimeError: no",
    ):
        assert text in page, (text, page)


def test_a_dry_run_is_called_one(report: ModuleType) -> None:
    page = report.render({"date": "2026-11-21", "version": "0.1.0", "dry_run": True, "steps": {}})
    assert "None of these figures is one of a GPU" in page
    assert "Made-up" not in page


def test_half_a_step_does_not_break_the_page(report: ModuleType) -> None:
    for name, step in record()["steps"].items():
        for key in step:
            half = {
                "date": "2026-11-21",
                "version": "0.1.0",
                "steps": {name: {k: v for k, v in step.items() if k != key}},
            }
            assert report.render(half).startswith("# Kernels on a real GPU")


# --- children -----------------------------------------------------------------------------------------------------------


def test_a_childs_answers_are_found_among_other_lines(children: ModuleType, tmp_path: Path) -> None:
    code = "print('noise'); print('{\"at\": \"ready\"}'); print('[1]'); input(); print('{\"x\": 2}')"
    with children.Child([sys.executable, "-uc", code], os.environ, tmp_path / "log", tmp_path) as child:
        assert child.answer(LIMIT_S, "ready") == {"at": "ready"}
        child.say()
        assert child.answer(LIMIT_S) == {"x": 2}
        child.finish(LIMIT_S)
        assert child.process.returncode == 0


def test_a_child_that_fails_tells_its_exit_code_and_last_words(children: ModuleType, tmp_path: Path) -> None:
    code = "import sys; print('out'); sys.exit('no device')"
    with (
        children.Child([sys.executable, "-c", code], os.environ, tmp_path / "log", tmp_path) as child,
        pytest.raises(children.ChildFailed, match=r"exit code 1: out \| no device"),
    ):
        child.answer(LIMIT_S)


def test_a_child_that_hangs_is_given_up_and_killed_with_its_children(children: ModuleType, tmp_path: Path) -> None:
    code = """
import json, subprocess, sys, time
print(json.dumps({"pid": subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid}))
time.sleep(600)
"""
    with children.Child([sys.executable, "-uc", code], os.environ, tmp_path / "log", tmp_path) as child:
        grandchild = child.answer(LIMIT_S)["pid"]
        with pytest.raises(children.ChildFailed, match="no answer within 0 s"):
            child.answer(0.05)
    until_s = time.monotonic() + LIMIT_S
    while runs(grandchild):
        assert time.monotonic() < until_s, "the grandchild lives on"
        time.sleep(0.01)


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# --- the run ------------------------------------------------------------------------------------------------------------


def test_a_step_that_breaks_leaves_the_others_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = importlib.import_module("gpu_kernels")

    def broken(bench: Any) -> dict[str, Any]:
        main.keep(bench, "share1", {"rows": [TURNS]})
        raise ZeroDivisionError("oops")

    def lacks(bench: Any) -> dict[str, Any]:
        raise main.Missing("no nvcc here.")

    steps = {
        "probe": lambda bench: {"device": "cpu"},
        "share1": broken,
        "overhead": lacks,
        "works": lambda bench: {"rows": []},
    }
    monkeypatch.setattr(main, "STEPS", tuple(main.Step(name, "", 0, run) for name, run in steps.items()))
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert main.main(["--device", "cpu", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu_kernels.json").read_text())
    states = {name: step["state"] for name, step in found["steps"].items()}
    assert states == {"probe": "ok", "share1": "failed", "overhead": "skipped", "works": "ok"}
    assert found["steps"]["share1"]["rows"] == [TURNS] and "oops" in found["steps"]["share1"]["why"]
    assert found["dry_run"] is True
    assert "Not run: no nvcc here." in (tmp_path / "gpu_kernels.md").read_text()
    # One step again: the others' results stay.
    steps["overhead"] = lambda bench: {"rows": []}
    monkeypatch.setattr(main, "STEPS", tuple(main.Step(name, "", 0, run) for name, run in steps.items()))
    assert main.main(["--device", "cpu", "--out", str(tmp_path), "--only", "overhead"]) == 0
    found = json.loads((tmp_path / "gpu_kernels.json").read_text())
    assert {name: step["state"] for name, step in found["steps"].items()} == states | {"overhead": "ok"}


def test_out_of_time_is_told_and_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    main = importlib.import_module("gpu_kernels")
    steps = (
        main.Step("probe", "", 0, lambda bench: {}),
        main.Step("works", "", 40, lambda bench: pytest.fail("begun")),
    )
    monkeypatch.setattr(main, "STEPS", steps)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "")
    monkeypatch.setenv("XDG_DATA_HOME", "")
    assert main.main(["--device", "cpu", "--out", str(tmp_path), "--limit", "30"]) == 0
    found = json.loads((tmp_path / "gpu_kernels.json").read_text())
    assert "out of time; run it with --only works" in found["steps"]["works"]["why"]


# --- programs on torch's CPU device ---------------------------------------------------------------------------------------


@pytest.fixture
def torch() -> ModuleType:
    return pytest.importorskip("torch", reason="torch is not installed")


def printed(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert isinstance(told, dict)
    return told


@pytest.mark.slow
def test_trainings_learn_and_repeat_their_losses(torch: ModuleType) -> None:
    for model in ("conv", "transformer"):
        argv = ["train", "--model", model, *TINY, "--steps", "24", "--deterministic"]
        one, two = (printed(run(sys.executable, str(SCRIPTS / "gpu_programs.py"), *argv)) for _ in range(2))
        assert one["losses"] == two["losses"]
        assert sum(one["losses"][-8:]) < sum(one["losses"][:8]), one["losses"]  # each batch comes again every 8 steps


def test_a_server_counts_each_request_that_comes_in_its_window(torch: ModuleType) -> None:
    programs = importlib.import_module("gpu_programs")
    arrivals = programs.arrivals_s(40.0, 0.5, 7)
    assert arrivals == programs.arrivals_s(40.0, 0.5, 7) and all(0 < at_s < 0.5 for at_s in arrivals)
    argv = ["serve", *TINY, "--rate", "40", "--seconds", "0.5", "--seed", "7"]
    told = printed(run(sys.executable, str(SCRIPTS / "gpu_programs.py"), *argv))
    assert len(told["latencies_s"]) == told["served"] + told["unserved"] == len(arrivals)


def test_graphs_need_cuda(torch: ModuleType) -> None:
    done = run(sys.executable, str(SCRIPTS / "gpu_programs.py"), "train", "--how", "graphs", *TINY)
    assert done.returncode == 1 and "--how graphs needs --device cuda" in done.stderr


@pytest.mark.parametrize(
    ("job", "said"),
    [
        ("a=b", "NAME=train or NAME=serve is needed"),
        ("a=train:how=fast", "how is one of eager, graphs, compile"),
        ("a=train:speed=9", "'speed=9' is not one of how, model, rate, priority, seed"),
        ("a=serve:rate=load:0.4", "rate=load:… needs --turns"),
    ],
)
def test_jobs_that_cannot_be_run_are_told(torch: ModuleType, job: str, said: str) -> None:
    done = run(sys.executable, str(SCRIPTS / "gpu_pair.py"), *TINY, "--job", job)
    assert done.returncode == 1 and said in done.stderr


def test_latencies_are_ranked(torch: ModuleType) -> None:
    told = importlib.import_module("gpu_pair").latency([n / 1000 for n in range(100, 0, -1)])
    assert (told["count"], told["p50_s"], told["p99_s"], told["max_s"]) == (100, 0.05, 0.099, 0.1)


@pytest.mark.slow
def test_a_training_and_a_server_run_as_threads_and_in_turns(
    torch: ModuleType, children: ModuleType, tmp_path: Path
) -> None:
    window = ["--seconds", "0.3", "--settle", "0.1"]
    jobs = ["--job", "serve=serve:rate=20,priority=high", "--job", "train=train:model=transformer"]
    argv = [sys.executable, str(SCRIPTS / "gpu_pair.py"), *TINY, *window, *jobs, "--hold"]
    with children.Child(argv, os.environ, tmp_path / "log", tmp_path) as child:
        for at in ("loaded", "ready"):
            child.answer(LIMIT_S, at)
            child.say()
        told = child.answer(LIMIT_S, "done")["jobs"]
    assert told["serve"]["latency"]["count"] == told["serve"]["served"] + told["serve"]["unserved"] > 0
    assert told["train"]["seconds"] > 0 and "error" not in told["train"]
    jobs = ["--job", "one=serve:rate=load:0.2", "--job", "two=serve:rate=load:0.2"]
    told = printed(run(sys.executable, str(SCRIPTS / "gpu_pair.py"), *TINY, *window, *jobs, "--turns"))["jobs"]
    assert told["one"]["rate"] == told["two"]["rate"] == pytest.approx(0.2 / told["one"]["service_s"])


def test_clients_without_the_interposer_are_an_error_not_another_measurement(torch: ModuleType) -> None:
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    argv = [sys.executable, str(SCRIPTS / "gpu_pair.py"), *TINY, "--job", "a=train", "--clients"]
    done = run(*argv, env={"PYTHONPATH": path})
    assert done.returncode == 1
    assert "OutsideTierline" in json.loads(done.stdout)["jobs"]["a"]["error"]


@pytest.mark.slow
def test_a_dry_run_measures_the_rows_that_need_no_interposer(torch: ModuleType, tmp_path: Path) -> None:
    argv = ["--device", "cpu", "--only", "lanes,share1", "--seconds", "0.3", "--settle", "0.1", "--row-s", "0"]
    code = """
import sys
sys.path.insert(0, sys.argv.pop(1))
import gpu_kernels
gpu_kernels.ROWS = tuple(row for row in gpu_kernels.ROWS if row.name in ("turns", "plain", "processes"))
sys.exit(gpu_kernels.main(sys.argv[1:]))
"""
    done = run(sys.executable, "-c", code, str(SCRIPTS), *argv, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "gpu_kernels.json").read_text())
    assert found["steps"]["lanes"]["state"] == "skipped"
    rows = {row["name"]: row for row in found["steps"]["share1"]["rows"]}
    assert list(rows) == ["turns", "plain", "processes"]
    for row in rows.values():
        assert set(row["jobs"]) == {"serve", "train"}, row
    assert rows["plain"]["jobs"]["serve"]["rate"] == pytest.approx(found["steps"]["share1"]["rate"])
    assert "None of these figures is one of a GPU" in (tmp_path / "gpu_kernels.md").read_text()


LANES = """
import ctypes, sys, types
sys.path.insert(0, sys.argv[1])
import gpu_lanes
driver, context = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p()

def zeros(*_, **__):
    assert driver.cuInit(0) == 0
    assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0) == driver.cuCtxSetCurrent(context) == 0

gpu_lanes.torch = types.SimpleNamespace(zeros=zeros, cuda=types.SimpleNamespace(ExternalStream=bool))
print([gpu_lanes.lanes(sms) for sms in (24, 48)])
"""


def test_lanes_come_from_one_split_of_the_device(torch: ModuleType) -> None:
    """The driver calls of gpu_lanes.py against the fake driver's 132 multiprocessors."""
    fake = ROOT / "src" / "tierline" / "_lib" / "fake"
    if not (fake / "libcuda.so.1").exists():
        pytest.skip("the fake driver is not built (scripts/native)")
    done = run(sys.executable, "-c", LANES, str(SCRIPTS), env={"LD_LIBRARY_PATH": str(fake), "FAKECUDA_DEVICE": "h200"})
    assert (done.returncode, done.stdout) == (0, "[[(24, True), (108, True)], [(48, True), (84, True)]]\n"), done.stderr


# --- native clients -------------------------------------------------------------------------------------------------------


def test_the_cuda_client_compiles_with_nvcc(tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not here")
    target = tmp_path / "cuda_launches"
    argv = ["nvcc", "-std=c++17", "-arch=sm_90", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
    done = run(*argv, "-o", str(target), str(NATIVE_TESTS / "cuda_launches.cu"))
    assert done.returncode == 0, done.stderr
    assert run(str(target), "0").returncode == 2


FAKE_CUPTI = r"""
#include <cstdint>
struct Data { int site; const char* function; };
using Callback = void (*)(void*, int, std::uint32_t, const void*);
static Callback g_callback;
extern "C" int cuptiSubscribe(void** subscriber, Callback callback, void*) {
    g_callback = callback;
    *subscriber = &g_callback;
    return 0;
}
extern "C" int cuptiEnableDomain(std::uint32_t, void*, int domain) { return domain == 1 ? 0 : 7; }
extern "C" void call(int domain, std::uint32_t id, const char* function) {
    for (int site = 0; site < 2; ++site) { Data data{site, function}; g_callback(nullptr, domain, id, &data); }
}
"""
COUNT = """
import ctypes, sys
count = ctypes.CDLL(sys.argv[1])
assert count.tierline_count_start() == 0
cupti = ctypes.CDLL("libcupti.so.13")
text = ctypes.create_string_buffer(100)
cupti.call(1, 3, b"forgotten")
count.tierline_count_reset()
launch, record = b"cuLaunchKernel", b"cuEventRecord"
for _ in range(3):
    cupti.call(1, 307, launch)
cupti.call(1, 12, record)
cupti.call(3, 307, launch)
assert count.tierline_count_read(text, 5) > 5
count.tierline_count_read(text, 100)
print(text.value.decode(), end="")
"""


def test_driver_calls_are_counted_by_name(tmp_path: Path) -> None:
    compiler = shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler is here")
    (tmp_path / "cupti.cpp").write_text(FAKE_CUPTI)
    sources = {"libcupti.so.13": tmp_path / "cupti.cpp", "libcount.so": NATIVE_TESTS / "cuda_count_calls.cpp"}
    for name, source in sources.items():
        flags = ["-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-shared", "-fPIC"]
        done = run(compiler, *flags, "-o", str(tmp_path / name), str(source), "-ldl")
        assert done.returncode == 0, done.stderr
    done = run(sys.executable, "-c", COUNT, str(tmp_path / "libcount.so"), env={"LD_LIBRARY_PATH": str(tmp_path)})
    assert (done.returncode, done.stdout) == (0, "cuEventRecord 1\ncuLaunchKernel 3\n"), done.stderr
