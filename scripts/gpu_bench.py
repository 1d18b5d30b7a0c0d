"""What the steps of scripts/gpu_kernels.py share: the environment of children, regions, files that grow by the step."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gpu_kernels_report as report
from gpu_children import Child

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS, NATIVE_TESTS = ROOT / "scripts", ROOT / "native" / "tests"
STARTS_S = 90.0  # torch's import, the first context and a graph's capture, on a slow disk


class Missing(RuntimeError):
    """Something that a step needs is not here; the message says what, and how to get it."""


@dataclass(slots=True)
class Bench:
    """What the steps share. `found` is the record that becomes the JSON file; `env` what children get."""

    options: argparse.Namespace
    folder: Path
    env: dict[str, str]
    until_s: float
    found: dict[str, Any]
    limits: Any = None  # the device as the predictor takes it, once known
    built: dict[str, Path] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        return bool(self.options.device == "cuda")

    @property
    def left_s(self) -> float:
        return self.until_s - time.monotonic()

    def python(self, script: str, *arguments: str) -> list[str]:
        return [sys.executable, str(SCRIPTS / script), *arguments]

    def child(self, name: str, argv: list[str], env: dict[str, str] | None = None) -> Child:
        return Child(argv, {**self.env, **(env or {})}, self.folder / f"{name}.log", self.folder)

    def region(self, name: str, policy: str, mode: str = "latency") -> Path:
        """A region of its own for one run, with the device's limits."""
        try:
            from tierline.core.errors import TierlineError
            from tierline.kernels.native import make_region
        except ImportError as error:
            raise Missing(f"the package tierline cannot be imported here ({error}).") from None
        path = self.folder / f"{name}.region"
        path.unlink(missing_ok=True)
        try:
            make_region(path, policy, mode, self.limits)
        except (TierlineError, RuntimeError) as error:
            raise Missing(f"no region can be made: {error}") from None
        return path

    def gated(self, region: Path, policy: str, mode: str, priority: str, client: str) -> dict[str, str]:
        """The environment of a program under the interposer. Raises `Missing`."""
        from tierline.core.errors import TierlineError
        from tierline.kernels.environment import kernel_environment

        spec = self.limits.spec if self.limits is not None else ""
        try:
            return kernel_environment(region, policy, mode, priority, client, 0, device_spec=spec, base=self.env)
        except TierlineError as error:
            raise Missing(f"{error}") from None


def seen_in(region: Path) -> dict[str, Any]:
    """What the region says once its programs have ended."""
    from tierline.core.errors import TierlineError
    from tierline.kernels.region import read_region

    try:
        told = read_region(region, changes=False)
    except TierlineError as error:
        return {"clients": [], "unread": f"{error}"}
    names = ("launches", "at_once", "waited", "forced", "bypassed", "overflowed", "excess", "denied_allocations")
    return {
        "clients": [
            {"label": client.label, "priority": client.priority}
            | {name: getattr(client, name) for name in names}
            | {"wait_s": client.wait_ns / 1e9, "longest_wait_s": client.longest_wait_ns / 1e9}
            for client in told.clients
        ],
        "kernels": len(told.kernels),
        "peak_sm_util": told.peak_sm_util,
        "peak_bw_util": told.peak_bw_util,
        "top": [
            {"name": k.name[:80], "launches": k.launches, "duration_us": k.duration_ns / 1e3, "sm": k.sm_util,
             "bw": k.bw_util, "source": k.source}
            for k in told.by_time[:8]
        ],
    }  # fmt: skip


def importable(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def nvidia_smi(query: str) -> str:
    try:
        done = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return next(iter(done.stdout.splitlines()), "") if done.returncode == 0 else ""


def limits_of(bench: Bench) -> Any:
    """From the calibration of this run, else the data sheet of the device's name, else None."""
    with contextlib.suppress(Exception):  # msgspec may be missing, the device unknown: the driver's attributes do then
        from tierline.kernels.calibration import known_limits

        if (known := known_limits(0)) is not None:
            return known
    with contextlib.suppress(Exception):
        from tierline.kernels.datasheet import datasheet

        return datasheet(bench.found["steps"].get("probe", {}).get("device", ""))
    return None


def keep(bench: Bench, name: str, told: dict[str, Any]) -> None:
    """Write the files anew, with what there is by now; each is replaced whole."""
    bench.found["steps"][name] = {**bench.found["steps"].get(name, {}), **told}
    texts = {"gpu_kernels.json": json.dumps(bench.found, indent=1) + "\n", "gpu_kernels.md": report.render(bench.found)}
    for file, text in texts.items():
        partial = bench.options.out / f".{file}.partial"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, bench.options.out / file)
