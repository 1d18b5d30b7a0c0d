"""The fake driver as programs find and use it, without the interposer."""

from __future__ import annotations

import itertools
import json
import re
import struct
from pathlib import Path

import pytest

from .fake_driver_runs import Runs, calls, lines

ROOT = Path(__file__).resolve().parents[2]
OUT_OF_MEMORY, NOT_INITIALIZED, NOT_READY = 2, 3, 600


@pytest.fixture(scope="module")
def runs(native_bin, fake_driver: Path) -> Runs:
    return Runs(native_bin, fake_driver)


@pytest.mark.parametrize("name", ["door_plain", "door_dlsym"])
def test_the_driver_is_found(runs: Runs, name: str) -> None:
    assert runs(name)["object"] == "libcuda.so.1"


def test_a_wrapper_finds_the_driver_behind_itself(runs: Runs) -> None:
    seen = runs("door_next")
    assert (seen["wrapper_launches"], seen["driver_launches"]) == (3, 3)


@pytest.mark.parametrize(
    ("name", "runtime"), [("door_static_runtime", "door_static_runtime"), ("door_shared_runtime", "libcudart.so.13")]
)
def test_a_runtime_reaches_the_driver(runs: Runs, name: str, runtime: str) -> None:
    seen = runs(name)
    assert seen["object"] == runtime
    assert seen["copied"]
    assert seen["ms"] > 0
    assert (seen["launches"], seen["per_thread"], seen["export_tables"]) == (3, 1, 0)


@pytest.mark.parametrize("ways", [(), ("--nested",), ("--first",), ("--per-thread",), ("--first", "--per-thread")])
def test_launches_by_get_proc_address(runs: Runs, ways: tuple[str, ...], tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert runs("door_getproc", *ways, FAKECUDA_LOG=str(log))["object"] == "libcuda.so.1"
    launches = calls(log, "cuLaunchKernel")
    assert [launch["rc"] for launch in launches] == [0, 0, 0]
    expected = "cuLaunchKernel_ptsz" if "--per-thread" in ways else "cuLaunchKernel"
    assert {launch["symbol"] for launch in launches} == {expected}
    own_stream = launches[0]["stream"]
    assert own_stream.startswith("thread:" if "--per-thread" in ways else "stream:")


# name, version, flags -> status of the second form, symbol
ANSWERS = {
    ("cuLaunchKernel", 13000, 0): (0, "cuLaunchKernel"),
    ("cuLaunchKernel", 12000, 1): (0, "cuLaunchKernel"),
    ("cuLaunchKernel", 12000, 2): (0, "cuLaunchKernel_ptsz"),
    ("cuLaunchKernel", 4000, 2): (0, "cuLaunchKernel"),
    ("cuLaunchKernel", 3000, 0): (2, ""),
    ("cuLaunchKernelEx", 11050, 0): (2, ""),
    ("cuLaunchKernelEx", 11060, 0): (0, "cuLaunchKernelEx"),
    ("cuMemAlloc", 12000, 0): (0, "cuMemAlloc_v2"),
    ("cuMemAlloc", 2000, 0): (2, ""),
    ("cuStreamBeginCapture", 10000, 0): (0, "cuStreamBeginCapture"),
    ("cuStreamBeginCapture", 10010, 0): (0, "cuStreamBeginCapture_v2"),
    ("cuStreamSynchronize", 13000, 2): (0, "cuStreamSynchronize_ptsz"),
    ("cuStreamGetCaptureInfo", 11030, 0): (0, "cuStreamGetCaptureInfo_v2"),
    ("cuGraphKernelNodeGetParams", 10000, 0): (0, "cuGraphKernelNodeGetParams"),
    ("cuGraphKernelNodeGetParams", 12000, 0): (0, "cuGraphKernelNodeGetParams_v2"),
    ("cuEventDestroy", 2000, 0): (0, "cuEventDestroy"),
    ("cuGetProcAddress", 11030, 0): (0, "cuGetProcAddress"),
    ("cuGetProcAddress", 12000, 0): (0, "cuGetProcAddress_v2"),
    ("cuGetExportTable", 12000, 0): (0, "cuGetExportTable"),
    ("cuNoSuchFunction", 13000, 0): (1, ""),
}


def test_get_proc_address_honours_name_version_and_flags(runs: Runs) -> None:
    answers = {(a["name"], a["version"], a["flags"]): a for a in runs("door_getproc")["answers"]}
    for question, (status, symbol) in ANSWERS.items():
        answer = answers.pop(question)
        assert (answer["rc"], answer["status"], answer["symbol"]) == (0, status, symbol), question
        assert answer["same"]
        assert answer["first_rc"] == (0 if status == 0 else 500)
    assert len(answers) == 3  # a version above the driver's, and two senseless flags
    assert all(answer["rc"] == 1 and answer["untouched"] for answer in answers.values())


def test_an_older_driver_lacks_newer_functions(runs: Runs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcome = runs.finished("door_getproc", FAKECUDA_VERSION="11050", FAKECUDA_LOG=str(log))
    assert outcome.returncode == 1  # it asks for version 12000, which is above this driver's
    asked = {(line["name"], line["version"]): line for line in calls(log, "cuGetProcAddress") if "status" in line}
    assert ("cuLaunchKernel", 12000) not in asked
    assert asked["cuLaunchKernelEx", 11050]["status"] == 1  # it came with 11060: this driver has never heard of it


def test_arguments_are_read_during_the_launch(runs: Runs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    runs("args_overwritten", "--launches", "5", FAKECUDA_LOG=str(log))
    plain = [launch for launch in calls(log, "cuLaunchKernel") if launch["name"] == "compute_kernel"]
    configured = calls(log, "cuLaunchKernelEx")
    assert [launch["args"] for launch in plain] == [
        struct.pack("<Qi", base + i, i).hex() for i in range(5) for base in (0xA000, 0xB000)
    ]
    assert [launch["args"] for launch in configured] == [struct.pack("<Qi", 0xC000 + i, i).hex() for i in range(5)]
    assert {launch["priority"] for launch in configured} == {-1}


def test_calls_are_counted_and_summed_up(runs: Runs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    runs("door_plain", "--launches", "7", FAKECUDA_LOG=str(log))
    summary = lines(log)[-1]["summary"]
    assert summary["cuLaunchKernel"] == 7
    assert summary["cuStreamSynchronize"] == 1
    assert "cuGetExportTable" not in summary
    for name, number in summary.items():
        assert len([line for line in lines(log) if line.get("symbol") == name]) == number


@pytest.mark.parametrize(
    ("failure", "made"), [("cuLaunchKernel:3:700", 3), ("cuLaunchKernel:*:719", 1), ("cuLaunchKernel_ptsz:1:700", 9)]
)
def test_injected_errors(runs: Runs, tmp_path: Path, failure: str, made: int) -> None:
    log = tmp_path / "log"
    outcome = runs.finished("door_plain", "--launches", "9", FAKECUDA_LOG=str(log), FAKECUDA_FAIL=failure)
    launches = calls(log, "cuLaunchKernel")
    assert len(launches) == made
    if made < 9:
        status = int(failure.split(":")[2])
        assert launches[-1]["rc"] == status
        assert json.loads(outcome.stdout) == {"failed": "cuLaunchKernel", "rc": status}


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("FAKECUDA_DEVICE", "h9000", "h200, a100 and v100 are allowed"),
        ("FAKECUDA_CLOCK", "sundial", "virtual and wall are allowed"),
        ("FAKECUDA_SCALE", "-1", "a number above 0"),
        ("FAKECUDA_FAIL", "cuLaunchKernel:zero:1", "function:call:status is allowed"),
        ("FAKECUDA_MEMORY", "lots", "a whole number"),
    ],
)
def test_wrong_settings_are_told(runs: Runs, name: str, value: str, told: str) -> None:
    outcome = runs.finished("door_plain", **{name: value})
    assert json.loads(outcome.stdout)["failed"] == "cuInit"
    assert value in outcome.stderr
    assert told in outcome.stderr


def test_strict_refuses_a_launch_that_passed_no_gate(runs: Runs) -> None:
    assert runs("ticket_holder", FAKECUDA_STRICT="1")["statuses"] == [0, 719, 0, 719]
    assert runs("ticket_holder")["statuses"] == [0, 0, 0, 0]
    outcome = runs.finished("door_plain", FAKECUDA_STRICT="1")
    assert json.loads(outcome.stdout) == {"failed": "cuLaunchKernel", "rc": 719}


def test_virtual_time_repeats_and_devices_differ(runs: Runs, tmp_path: Path) -> None:
    def truth(path: Path, **variables: str) -> dict[str, object]:
        runs("graph", FAKECUDA_TRUTH=str(path), **variables)
        told = json.loads(path.read_text())
        del told["pid"]
        return told

    first, second = truth(tmp_path / "a"), truth(tmp_path / "b")
    assert first == second
    assert first["simulated_device"] is True
    assert truth(tmp_path / "c", FAKECUDA_DEVICE="v100")["now_ns"] > first["now_ns"]


def test_truth_tells_every_kernel(runs: Runs, tmp_path: Path) -> None:
    path = tmp_path / "truth"
    runs("threads", "--clients", "3", "--launches", "20", FAKECUDA_TRUTH=str(path))
    truth = json.loads(path.read_text())
    kernels = truth["kernels"]
    assert truth["kernels_done"] == len(kernels) == 60
    assert len({kernel["client"] for kernel in kernels}) == 3
    assert all(kernel["submitted_ns"] <= kernel["start_ns"] < kernel["end_ns"] <= truth["now_ns"] for kernel in kernels)
    by_stream: dict[int, list[dict[str, int]]] = {}
    for kernel in kernels:
        by_stream.setdefault(kernel["stream"], []).append(kernel)
    for stream in by_stream.values():
        assert all(before["end_ns"] <= after["start_ns"] for before, after in itertools.pairwise(stream))


@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_threads_with_streams_of_their_own(runs: Runs, clock: str) -> None:
    seen = runs("threads", "--clients", "4", "--launches", "30", FAKECUDA_CLOCK=clock)
    assert (seen["launches"], seen["failures"]) == (120, 0)


@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_a_spinning_kernel_lets_others_run_and_ends_when_told(runs: Runs, clock: str) -> None:
    seen = runs("spin", FAKECUDA_CLOCK=clock)
    assert (seen["while_spinning"], seen["after"]) == (NOT_READY, 0)


@pytest.mark.parametrize("clock", ["virtual", "wall"])
def test_ranks_that_wait_for_each_other(runs: Runs, clock: str) -> None:
    assert runs("nccl_like", "--rounds", "3", FAKECUDA_CLOCK=clock)["rounds"] == 3


def test_graph_nodes_keep_shape_and_arguments(runs: Runs) -> None:
    assert runs("graph")["grids"] == [[132, 0], [264, 1], [396, 2]]


def test_a_graph_launch_costs_as_its_kernels_do(runs: Runs) -> None:
    one, four = runs("graph", "--launches", "1"), runs("graph", "--launches", "4")
    assert 3.5 < four["device_ns"] / one["device_ns"] < 4.5


@pytest.mark.parametrize("way", ["plain", "async", "create"])
def test_memory_runs_out_and_comes_back(runs: Runs, way: str) -> None:
    options = [] if way == "plain" else [f"--{way}"]
    seen = runs("memory_hog", *options, FAKECUDA_MEMORY=str(10 << 30))
    assert seen["status"] == OUT_OF_MEMORY
    assert seen["bytes"] == 10 << 30 == seen["total"]
    assert (seen["free_full"], seen["free_after"]) == (0, seen["free_before"])


def test_after_a_fork_the_child_may_not_use_the_driver(runs: Runs) -> None:
    assert runs("fork_child") == {"early_child": 0, "late_child": NOT_INITIALIZED, "quiet_child": 0, "parent": "done"}


def test_a_program_without_cuda(runs: Runs) -> None:
    assert runs("no_cuda") == {"cosine": 1.0, "driver_loaded": False, "missing": True}


def test_cublas_launches_have_the_shapes_of_the_products(runs: Runs, tmp_path: Path) -> None:
    log = tmp_path / "log"
    seen = runs("cublas_shapes", FAKECUDA_LOG=str(log))
    assert (seen["object"], seen["light_object"]) == ("libcublas.so.13", "libcublasLt.so.13")
    launches = [(launch["name"], launch["grid"]) for launch in calls(log, "cuLaunchKernel")]
    assert launches == [
        ("fake_gemm_simt_128x128", [8, 4, 1]),
        ("fake_gemm_tensorop_128x128", [4, 4, 1]),
        ("fake_gemm_tensorop_128x128", [32, 16, 1]),
        ("fake_gemm_tensorop_128x128", [1, 1, 32]),
        ("fake_gemm_simt_128x128", [2, 2, 4]),
        ("fake_lt_matmul_tensorop_128x128", [16, 24, 1]),
    ]
    found = {line["name"] for line in calls(log, "cuGetProcAddress")}
    assert "cuLaunchKernel" in found  # each library finds the driver by itself, as the real ones do


@pytest.mark.parametrize("groups", [1, 2])
def test_cudnn_launches_have_the_shapes_of_the_convolution(runs: Runs, tmp_path: Path, groups: int) -> None:
    log = tmp_path / "log"
    runs("cudnn_shapes", "--groups", str(groups), FAKECUDA_LOG=str(log))
    launches = [(launch["name"], launch["grid"]) for launch in calls(log, "cuLaunchKernel")]
    pass_grid = [49, 4 // groups, groups]
    assert launches[:3] == [(f"fake_{kind}_tensorop_128x128", pass_grid) for kind in ("fprop", "dgrad", "wgrad")]
    assert launches[3] == ("fake_plan_tensorop_128x128", [32, 2, 1])


def test_the_library_exports_its_list_and_nothing_else(fake_driver: Path) -> None:
    listed = set(
        re.findall(r"^FAKE_ENTRY\(.*, (\w+)\)$", (ROOT / "native/fake/driver/entries.def").read_text(), re.MULTILINE)
    )
    exported = dynamic_symbols(fake_driver / "libcuda.so.1")
    own = {"fakecuda_calls", "fakecuda_now", "fakecuda_host", "fakecuda_client", "fakecuda_post"}
    assert exported == listed | own


def dynamic_symbols(path: Path) -> set[str]:
    """Names that an ELF64 library defines for others, read from its .dynsym."""
    data = path.read_bytes()
    at, size, number = struct.unpack_from("<Q", data, 40)[0], *struct.unpack_from("<HH", data, 58)
    sections = [struct.unpack_from("<IIQQQQIIQQ", data, at + i * size) for i in range(number)]
    table = next(section for section in sections if section[1] == 11)
    names = sections[table[6]][4]
    found = set()
    for offset in range(table[4], table[4] + table[5], 24):
        name, _, _, section, _, _ = struct.unpack_from("<IBBHQQ", data, offset)
        if section not in (0, 0xFFF1):
            found.add(data[names + name : data.index(b"\0", names + name)].decode())
    return found
