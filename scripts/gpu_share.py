"""The sharing steps of scripts/gpu_kernels.py: the same jobs run in every way that this machine has."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_bench import STARTS_S, Bench, Missing, keep, seen_in
from gpu_children import Child, ChildFailed

FALLBACK_RATE = 150.0


@dataclass(frozen=True, slots=True)
class Row:
    """One way to run the jobs of a share step. `policy` "" = the interposer stays out; `processes`: each job in its own."""

    name: str
    title: str
    policy: str = ""
    mode: str = "latency"
    streams: str = "equal"
    processes: bool = False
    mps: bool = False
    turns: bool = False


# In the order of their worth: a run that is cut short loses the last ones.
ROWS = (
    Row("turns", "one after another (each alone)", turns=True),
    Row("plain", "plain streams, one process"),
    Row("interference-latency", "interference, latency", "interference", "latency"),
    Row("interference-strict", "interference, strict", "interference", "strict"),
    Row("priority", "plain streams with priorities", streams="priority"),
    Row("orion", "orion", "orion"),
    Row("sequential", "sequential", "sequential"),
    Row("reef", "reef", "reef"),
    Row("tgs", "tgs", "tgs"),
    Row("free", "free (counted, not gated)", "free"),
    Row("processes", "separate processes, no MPS", processes=True),
    Row("processes-interference", "separate processes, no MPS, interference", "interference", processes=True),
)
MPS_ROWS = (
    Row("mps", "separate processes under MPS", processes=True, mps=True),
    Row("mps-interference", "separate processes under MPS, interference", "interference", processes=True, mps=True),
)
TURNS = ROWS[0]


def jobs_of(pairs: int, rate: float | str, device: str) -> list[str]:
    """The jobs as gpu_pair.py takes them: one server and one training, or two of each."""
    how = "graphs" if device == "cuda" else "eager"
    jobs = [f"serve=serve:how={how},rate={rate},priority=high,seed=11", "train=train:model=conv,seed=21"]
    if pairs == 2:
        jobs += [f"serve2=serve:how={how},rate={rate},priority=high,seed=12", "train2=train:model=transformer,seed=22"]
    return jobs


def share(bench: Bench, pairs: int, rows: tuple[Row, ...]) -> dict[str, Any]:
    """The rows one by one; while one is measured, the next one's processes import torch and wait."""
    told: dict[str, Any] = {"pairs": pairs, "rows": []}
    rate: float | str = f"load:{0.4 / pairs}"
    if TURNS not in rows:
        rate = known_rate(bench.found, pairs)
    started: list[Child] = []
    with contextlib.ExitStack() as stack:
        stack.callback(lambda: [child.close() for child in started])
        service = stack.enter_context(mps_service(bench)) if any(row.mps for row in rows) else None
        if service is not None:
            told["mps"] = {"is_on": service.is_on, "note": service.note}
            if not service.is_on:
                raise Missing(service.note)
            shared = bench.found["steps"].get(f"share{pairs}", {}).get("rows", [])
            told["turns"] = next((row for row in shared if row["name"] == "turns"), {})  # what the jobs do alone
        extra = dict(service.env) if service is not None else {}
        ahead = _start(bench, rows[0], pairs, rate, extra, started)
        for i, row in enumerate(rows):
            record: dict[str, Any] = {"name": row.name, "title": row.title}
            told["rows"].append(record)
            current = ahead
            if row.turns:  # the rate of all others comes from here
                record |= _measure(bench, row, current)
                rate = served_rate(record) or FALLBACK_RATE
                told["rate"] = rate
            if i + 1 < len(rows):
                ahead = _start(bench, rows[i + 1], pairs, rate, extra, started)
            if not row.turns:
                record |= _measure(bench, row, current)
            keep(bench, f"share{pairs}" if service is None else "mps", told)
    return told


def served_rate(record: dict[str, Any]) -> float:
    return float(record.get("jobs", {}).get("serve", {}).get("rate", 0.0))


def known_rate(found: dict[str, Any], pairs: int) -> float:
    """Of the share step that ran before."""
    return float(found["steps"].get(f"share{pairs}", {}).get("rate", 0.0)) or FALLBACK_RATE


Started = tuple[list[Child], Path | None] | str


def _start(
    bench: Bench, row: Row, pairs: int, rate: float | str, extra: dict[str, str], started: list[Child]
) -> Started:
    """The row's processes, importing torch; or why they cannot be had."""
    if bench.left_s < bench.options.row_s:
        return "out of time: run it with --only"
    jobs = jobs_of(pairs, rate, bench.options.device)
    options = bench.options
    common = ["--hold", "--device", options.device, "--size", "full" if bench.on_gpu else "tiny"]
    common += ["--seconds", str(options.seconds), "--settle", str(options.settle), "--streams", row.streams]
    if row.turns:
        common.append("--turns")
    try:
        region = bench.region(f"share{pairs}-{row.name}", row.policy, row.mode) if row.policy else None
        children = []
        for i, group in enumerate([[job] for job in jobs] if row.processes else [jobs]):
            name = group[0].partition("=")[0]
            env = dict(extra)
            if region is not None:
                priority = "high" if "priority=high" in group[0] and row.processes else "best-effort"
                env |= bench.gated(region, row.policy, row.mode, priority, name if row.processes else "process")
                if not row.processes and "--clients" not in common:
                    common.append("--clients")
            argv = bench.python("gpu_pair.py", *common, *(word for job in group for word in ("--job", job)))
            children.append(bench.child(f"share{pairs}-{row.name}-{i}", argv, env))
            started.append(children[-1])
    except Missing as error:
        return str(error)
    return children, region


def _measure(bench: Bench, row: Row, started: Started) -> dict[str, Any]:
    if isinstance(started, str):
        return {"skipped": started}
    children, region = started
    jobs: dict[str, Any] = {}
    window_s = bench.options.seconds + bench.options.settle + 2.0
    length_s = window_s * (4 if row.turns else 2) + 15.0
    try:
        for at in ("loaded", "ready"):
            for child in children:
                child.answer(max(min(STARTS_S, bench.left_s), 1.0), at)
            for child in children:
                child.say()
        for child in children:
            jobs |= child.answer(length_s, "done")["jobs"]
            child.finish(20.0)
    except ChildFailed as error:
        return {"error": str(error), "jobs": jobs}
    finally:
        for child in children:
            child.close()
    record: dict[str, Any] = {"jobs": jobs}
    if region is not None:
        record["region"] = seen_in(region)
    return record


@contextlib.contextmanager
def mps_service(bench: Bench) -> Any:
    from tierline.kernels import mps

    if not bench.on_gpu:
        raise Missing("MPS needs an NVIDIA GPU.")
    # The daemon's socket has a short path by need; the bench's folder may be deep.
    with tempfile.TemporaryDirectory(prefix="mps-") as folder:
        service = mps.start(0, Path(folder))
        try:
            yield service
        finally:
            mps.stop(service)
