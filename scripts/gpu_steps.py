"""The steps of scripts/gpu_kernels.py other than sharing: what is here, does it work, what does a launch cost."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import gpu_kernels_report as report
from gpu_bench import NATIVE_TESTS, ROOT, STARTS_S, Bench, Missing, importable, keep, nvidia_smi, seen_in
from gpu_children import Child, ChildFailed, run_to_end

ROUNDS = 7


def probe(bench: Bench) -> dict[str, Any]:
    """What is here."""
    code = (
        "import json, torch; c = torch.cuda.is_available(); p = torch.cuda.get_device_properties(0) if c else None; "
        "print(json.dumps({'torch': torch.__version__, 'cuda': torch.version.cuda or '', 'is_available': c, "
        "'device': p.name if c else 'cpu', 'sms': p.multi_processor_count if c else 0, "
        "'memory_bytes': p.total_memory if c else 0}))"
    )
    with bench.child("probe", [sys.executable, "-c", code]) as child:
        told = child.answer(STARTS_S)
    if bench.on_gpu and not told["is_available"]:
        raise Missing(
            f"torch {told['torch']} of {sys.executable} finds no CUDA device; PYTHON=... names another Python."
        )
    told |= {
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "driver": nvidia_smi("driver_version"),
    }
    for tool in ("nvcc", "c++", "nvidia-cuda-mps-control", "ncu"):
        told[tool] = bool(shutil.which(tool))
    told["modules_missing"] = [
        m for m in ("msgspec", "typer", "rich", "pynvml", "pytest", "numpy") if not importable(m)
    ]
    told["interposer"], told["native"] = "", ""
    try:
        from tierline.kernels.environment import library_path
        from tierline.kernels.native import load

        told["interposer"] = library_path().name
        told["native"] = Path(load().__file__).name
    except Exception as error:
        told["lacks"] = f"{error}"
    return told


def calibrate(bench: Bench) -> dict[str, Any]:
    """`tierline calibrate device`: its output and its file."""
    if not bench.on_gpu:
        raise Missing("calibration needs a CUDA device.")
    argv = [sys.executable, "-m", "tierline.cli.main", "calibrate", "device"]
    code, text = run_to_end(argv, bench.env, bench.folder / "calibrate.log", bench.folder, min(90.0, bench.left_s))
    files = sorted((bench.folder / "data" / "tierline" / "devices").glob("*.json"))
    told: dict[str, Any] = {"output": text[-6000:]}
    if files:
        told["calibration"] = json.loads(files[0].read_text(encoding="utf-8"))
    if code:
        raise ChildFailed(f"`tierline calibrate device` {'hung' if code < 0 else f'ended with {code}'}: {text[-800:]}")
    return told


def works(bench: Bench) -> dict[str, Any]:
    """The same losses and answers without the interposer, with it, and with it while three programs share one region."""
    steps = ["--steps", str(bench.options.check_steps), "--device", bench.options.device, "--deterministic"]
    size = ["--size", "check" if bench.on_gpu else "tiny"]
    repeatable = {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    hows = ["eager", "graphs", "compile"] if bench.on_gpu else ["eager"]
    rows: list[dict[str, Any]] = []
    told: dict[str, Any] = {"rows": rows}

    def wave(name: str, envs: dict[str, tuple[dict[str, str], Path | None]]) -> None:
        with contextlib.ExitStack() as stack:
            children = {}
            for how, (env, _) in envs.items():
                argv = bench.python("gpu_programs.py", "check", "--how", how, *steps, *size)
                children[how] = stack.enter_context(bench.child(f"works-{name}-{how}", argv, env | repeatable))
            until_s = time.monotonic() + min(150.0, bench.left_s)
            for how, child in children.items():
                row: dict[str, Any] = {"wave": name, "how": how}
                try:
                    row |= child.answer(max(until_s - time.monotonic(), 0.1))
                    child.finish(20.0)
                except ChildFailed as error:
                    row["error"] = str(error)
                if (region := envs[how][1]) is not None and "error" not in row:
                    row["region"] = seen_in(region)
                rows.append(row)
        keep(bench, "works", told)

    wave("without", {how: ({}, None) for how in hows})
    alone = {}
    for how in hows:
        region = bench.region(f"works-alone-{how}", "interference")
        alone[how] = (bench.gated(region, "interference", "latency", "best-effort", how), region)
    wave("alone", alone)
    region = bench.region("works-shared", "interference")
    priority = {"eager": "high"}
    wave("shared", {
        how: (bench.gated(region, "interference", "latency", priority.get(how, "best-effort"), how), region) for how in hows
    })  # fmt: skip
    told["same"] = report.same_results(rows)
    command = bench.python("gpu_programs.py", "check", "--how", "eager", *steps, *size)
    argv = [sys.executable, "-m", "tierline.cli.main", "run", "--priority", "high", "--name", "works", "--", *command]
    code, text = run_to_end(argv, bench.env, bench.folder / "works-run.log", bench.folder, min(90.0, bench.left_s))
    told["tierline_run"] = {"exit_code": code, "output": text[-600:] if code else ""}
    return told


def build(bench: Bench) -> None:
    """The CUDA client by nvcc and the counter of driver calls by c++, once."""
    library, client = bench.folder / "libtierline_count_calls.so", bench.folder / "cuda_launches"
    commands = {
        library: ["c++", "-std=c++17", "-O2", "-shared", "-fPIC", "-o", str(library),
                  str(NATIVE_TESTS / "cuda_count_calls.cpp"), "-ldl"],
        client: ["nvcc", "-std=c++17", "-O2", "-arch=native", "-o", str(client), str(NATIVE_TESTS / "cuda_launches.cu")],
    }  # fmt: skip
    for target, argv in commands.items():
        if shutil.which(argv[0]) and not target.exists():
            run_to_end(argv, bench.env, bench.folder / f"{target.name}.log", bench.folder, 60.0)
        if target.exists():
            bench.built[target.name] = target


def overhead(bench: Bench) -> dict[str, Any]:
    """Nanoseconds of the launching thread per tiny launch, alternating; driver calls per launch as CUPTI counts them."""
    build(bench)
    small = [] if bench.on_gpu else ["--bursts", "10", "--launches", "20"]
    torch_argv = bench.python("gpu_launches.py", "--device", bench.options.device, *small)
    company = bench.python("gpu_launches.py", "--company", "--launches", "16", "--bursts", "100")
    plans: list[tuple[str, str, list[str], str]] = [
        (f"{name} {who}", name, argv, who)
        for name, argv in (
            ("torch", torch_argv),
            ("cuda", [str(bench.built.get("cuda_launches", "")), "100", "500"] if bench.on_gpu else []),
            ("company", company if bench.on_gpu else []),
        )
        for who in ("plain", "high", "best-effort")
        if argv and argv[0] and (name, who) != ("company", "high")
    ]
    told: dict[str, Any] = {"rows": [], "missing": []}
    for group in ("torch", "cuda", "company"):
        with contextlib.ExitStack() as stack:
            children: dict[str, tuple[Child, Path | None, str]] = {}
            for name, kind, argv, who in plans:
                if kind != group:
                    continue
                try:
                    env, region = _client(bench, f"overhead-{group}-{who}", who)
                except Missing as error:
                    told["missing"].append(f"{name}: {error}")
                    continue
                argv = [*argv, "--clients"] if group == "company" and who != "plain" else argv
                child = stack.enter_context(bench.child(f"overhead-{group}-{who}", argv, env))
                children[name] = (child, region, who)
            samples = _alternate(children, told, ready=group != "cuda")
            for name, (child, region, who) in children.items():
                row: dict[str, Any] = {"program": group, "client": who, "rounds": samples.get(name, [])}
                if group == "cuda" and samples.get(name):
                    child.process.stdin.close()  # type: ignore[union-attr]
                    with contextlib.suppress(ChildFailed):
                        row |= child.answer(20.0)
                child.finish(20.0)
                if region is not None and samples.get(name):
                    row["region"] = seen_in(region)
                told["rows"].append(row)
    told["calls"] = _count_calls(bench, torch_argv, company) if bench.on_gpu else []
    return told


def _client(bench: Bench, name: str, who: str) -> tuple[dict[str, str], Path | None]:
    if who == "plain":
        return {}, None
    region = bench.region(name, "interference")
    return bench.gated(region, "interference", "latency", who, who), region


def _alternate(
    children: dict[str, tuple[Child, Path | None, str]], told: dict[str, Any], ready: bool
) -> dict[str, list[dict[str, float]]]:
    """One round each in turn, so that what drifts drifts for all. A child that fails drops out."""
    samples: dict[str, list[dict[str, float]]] = {name: [] for name in children}
    failed: set[str] = set()
    for turn in range(-1 if ready else 0, ROUNDS + 1):
        for name, (child, _, _) in children.items():
            if name in failed:
                continue
            try:
                if turn < 0:
                    child.answer(STARTS_S, "ready")
                    continue
                child.say("round")
                told_ns = child.answer(STARTS_S)
                if turn:  # the first one warms up
                    samples[name].append(told_ns)
            except ChildFailed as error:
                failed.add(name)
                told["missing"].append(f"{name}: {error}")
    return samples


COUNTED = (
    ("torch", "plain"), ("torch", "high"), ("torch", "best-effort"), ("company", "plain"), ("company", "best-effort"),
)  # fmt: skip


def _count_calls(bench: Bench, torch_argv: list[str], company: list[str]) -> list[dict[str, Any]]:
    library = bench.built.get("libtierline_count_calls.so")
    if library is None:
        return [{"counted": False, "why": "no C++ compiler made the counter (native/tests/cuda_count_calls.cpp)"}]
    rows = []
    for program, who in COUNTED:
        row: dict[str, Any] = {"program": program, "client": who}
        argv = [*(torch_argv if program == "torch" else company), "--count", str(library)]
        if program == "company" and who != "plain":
            argv.append("--clients")
        try:
            env, _ = _client(bench, f"calls-{program}-{who}", who)
            with bench.child(f"calls-{program}-{who}", argv, env) as child:
                row |= child.answer(min(STARTS_S, max(bench.left_s, 1.0)))
        except (ChildFailed, Missing) as error:
            row |= {"counted": False, "why": str(error)}
        rows.append(row)
    return rows


def lanes(bench: Bench) -> dict[str, Any]:
    """Green-context lanes for GEMM beside norm."""
    if not bench.on_gpu:
        raise Missing("lanes need a CUDA device.")
    with bench.child("lanes", bench.python("gpu_lanes.py")) as child:
        return child.answer(min(STARTS_S, bench.left_s))


def tests(bench: Bench) -> dict[str, Any]:
    """`pytest -m gpu` of this tier."""
    if not importable("pytest"):
        raise Missing("pytest is not installed for this Python.")
    argv = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider", "tests/gpu/test_kernels.py"]
    code, text = run_to_end(argv, bench.env, bench.folder / "tests.log", ROOT, min(150.0, bench.left_s))
    lines = [line for line in text.splitlines() if line.strip()]
    return {"exit_code": code, "summary": lines[-1] if lines else "", "output": "" if code == 0 else text[-4000:]}
