"""scripts/gpu serving without a GPU: arguments, the record and its page, and all steps on torch's CPU device in tiny sizes.

Tokens are compared with Transformers' for real; every figure in here is made up or one of a CPU, and its page says so.
"""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = ROOT / "scripts"
LIMIT_S = 300


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module("gpu_serving")


@pytest.fixture
def report(main: ModuleType) -> ModuleType:
    return importlib.import_module("gpu_serving_report")


# --- arguments ----------------------------------------------------------------------------------------------------------


def test_the_plan_lists_every_step_and_runs_none(main: ModuleType) -> None:
    argv = ["bash", str(SCRIPTS / "gpu"), "serving", "--plan"]
    done = subprocess.run(argv, env={"PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == [step.name for step in main.STEPS]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--only", "parity,mvoes"], "--only mvoes: the steps are probe, parity, throughput"),
        (["--device", "cpu"], "it is not written to docs/results: name a folder, --out"),
    ],
)
def test_wrong_arguments_are_told(
    main: ModuleType, argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main.main(argv)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_steps_fit_into_the_time_and_the_important_ones_come_first(main: ModuleType) -> None:
    names = [step.name for step in main.STEPS]
    assert names[:3] == ["probe", "parity", "throughput"]
    assert main.parse([]).limit <= 480
    assert all(step.worth_s <= step.limit_s for step in main.STEPS)


# --- the run ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_everything_runs_in_tiny_sizes_with_transformers_tokens(main: ModuleType, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    assert main.main(["--device", "cpu", "--here", "--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "serving_gpu.json").read_text())
    states = {name: step["state"] for name, step in found["steps"].items()}
    assert states == {step.name: "ok" for step in main.STEPS} | {"large": "skipped"}
    rows = {name: step["rows"] for name, step in found["steps"].items()}
    assert found["dry_run"] is True
    assert rows["probe"][0]["torch"]

    exact = [row for row in rows["parity"] if row.get("dtype") == "fp32"]
    assert {row["kind"] for row in exact} == {"llama", "llava-clip"}
    assert all(row["identical"] == row["requests"] > 5 and row["faults"] == [] for row in exact)
    for kind in ("llama", "llava-clip"):
        same = {row["how"]: row for row in exact if row["kind"] == kind}
        assert same["two instances, moves, cold"]["moves"] > 0
        assert same["two instances, moves, warm"]["cached_tokens"] > same["two instances, moves, cold"]["cached_tokens"]
        assert same["padded as for CUDA graphs"]["graph_steps"] > 10
        assert not same["padded as for CUDA graphs"]["graphs_off"]
    assert sum(row["preemptions"] for row in exact) > 0
    bf16 = [row for row in rows["parity"] if row.get("dtype") == "bf16"]
    assert len(bf16) == 2
    assert all(0 < row["agreed_tokens"] <= row["tokens"] for row in bf16)

    assert {row["how"] for row in rows["throughput"]} == {"engine", "engine, CUDA graphs", "Transformers"}
    for row in rows["throughput"]:  # in fp32 the three ways agree
        assert row["against_transformers"]["agreed_tokens"] == row["against_transformers"]["tokens"] == 2 * 6
        assert len(row["tokens_per_s"]) == 2
        assert min(row["tokens_per_s"]) > 0
    assert [row["same"] for row in rows["transfers"] if "same" in row] == [True] * 3
    assert {row["tokens"] for row in rows["moves"]} == {64, 100}
    assert all(row["same_tokens"] and row["rounds"] > 0 and row["gap_ms"] > 0 for row in rows["moves"])
    (together,) = rows["beside"]
    assert min(together["decodes_slowdown"], together["prompt_slowdown"]) >= 1
    (memory,) = rows["memory"]
    assert 0 < memory["arena_bytes"] <= 1 << 20

    page = (tmp_path / "serving_gpu.md").read_text()
    assert "None of these figures is one of a GPU" in page
    for line in (
        "| llama | two instances, moves, cold | ",
        "| tiny | 2 | engine | ",
        "| KV arrived as it was sent | 64 |",
        "| tiny | 1 layers, 16 patches | 32 | ",
    ):
        assert line in page
    for table in page.split("\n\n"):
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) <= 1, table


def test_a_step_is_a_process_whose_end_is_told(main: ModuleType, tmp_path: Path) -> None:
    """A run without `--here`, of the one step that needs no model."""
    pytest.importorskip("torch")
    assert main.main(["--device", "cpu", "--only", "probe", "--out", str(tmp_path)]) == 0
    steps = json.loads((tmp_path / "serving_gpu.json").read_text())["steps"]
    assert steps["probe"]["rows"][0]["device"] == "cpu"
    bad = main.Step("bad", "", "gpu_serving_steps:nothing", 60, 0)
    with pytest.raises(main.StepFailed, match=r"exit code [12]: .*invalid choice: 'bad'"):
        main.run_apart(bad, "cpu", LIMIT_S, lambda row: None)
    with pytest.raises(main.StepFailed, match="not done within 0 s"):
        main.run_apart(main.STEPS[1], "cpu", 0.01, lambda row: None)


def test_what_breaks_or_lacks_something_leaves_the_other_results(
    main: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(step: Any, device: str, tell: Any) -> None:
        tell({"device": "x"})
        if step.name == "parity":
            raise ZeroDivisionError("oops")
        if step.name == "moves":
            tell({"lacking": "no transformers"})

    steps = [
        main.Step(name, "", "", 10, worth)
        for name, worth in (("probe", 0), ("parity", 0), ("moves", 0), ("memory", 99))
    ]
    monkeypatch.setattr(main, "STEPS", tuple(steps))
    monkeypatch.setattr(main, "run_here", fake)
    render = main.report.render
    monkeypatch.setattr(main.report, "PARTS", ())
    assert main.main(["--device", "cpu", "--here", "--limit", "50", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "serving_gpu.json").read_text())["steps"]
    assert {name: step["state"] for name, step in found.items()} == {
        "probe": "ok", "parity": "failed", "moves": "skipped", "memory": "skipped"
    }  # fmt: skip
    assert found["parity"]["rows"] == [{"device": "x"}]
    assert "oops" in found["parity"]["why"]
    assert found["memory"]["why"] == "out of time; run it with --only memory"
    assert render is main.report.render
    assert main.main(["--device", "cpu", "--here", "--only", "moves", "--out", str(tmp_path)]) == 1
    assert json.loads((tmp_path / "serving_gpu.json").read_text())["steps"]["parity"] == found["parity"]


# --- the page -----------------------------------------------------------------------------------------------------------


def record(**steps: list[dict[str, Any]]) -> dict[str, Any]:
    told = {name: {"state": "ok", "rows": rows, "date": "2026-01-02"} for name, rows in steps.items()}
    return {"date": "2026-01-02", "version": "0", "dry_run": False, "synthetic": True, "steps": told}


def test_the_page_tells_the_machine_and_a_step_beside_its_floor(report: ModuleType) -> None:
    here = {
        "device": "NVIDIA Made-Up", "devices": 2, "memory_bytes": 80 << 30, "copy_bytes_per_s": 2e12, "driver": "1.2",
        "cores": 16, "torch": "9", "transformers": "8", "python": "7",
    }  # fmt: skip
    base = {
        "shape": "s", "batch": 16, "weights_bytes": 4_000_000_000, "input_tokens": 128, "output_tokens": 64,
        "against_transformers": {"identical": 1, "tokens": 1024, "agreed_tokens": 1000},
    }  # fmt: skip
    rows = [
        {
            **base,
            "how": "engine",
            "tokens_per_s": [300.0, 100.0, 200.0],
            "step_ms": 5.0,
            "first_token_ms": 9.0,
            "graphs": None,
        },
        {
            **base,
            "how": "Transformers",
            "tokens_per_s": [100.0],
            "step_ms": 6.0,
            "first_token_ms": None,
            "graphs": None,
        },
    ]
    page = report.render(record(probe=[here], throughput=rows))
    assert "Made-up samples of a test" in page
    assert "2 x NVIDIA Made-Up (80 GiB), 2.00 TB/s read and written in a copy; driver 1.2" in page
    assert "| s | 16 | engine | 200 (100 to 300) | 2.00 | 5.00 | 2.00 | 9.0 | 1000 of 1024 |" in page


def test_what_is_wrong_is_said(report: ModuleType) -> None:
    row = {
        "kind": "llama",
        "how": "moves",
        "dtype": "fp32",
        "requests": 9,
        "identical": 8,
        "faults": ["r1 should be 2"],
    }
    found = record(
        parity=[row, {**row, "identical": 9, "faults": []}, {"kind": "qwen3", "how": "all", "failed": "OSError: no"}],
        transfers=[{"what": "KV arrived as it was sent", "tokens": 64, "same": False}],
    )
    assert report.wrong(found) == [
        "parity, llama moves: 8 of 9 answers are equal; r1 should be 2",
        "parity, qwen3 all: OSError: no",
        "transfers, KV arrived as it was sent 64: the bytes differ",
    ]
