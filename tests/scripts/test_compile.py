"""What scripts/compile builds is the same program: a simulated run ends the same to the nanosecond."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RUN = """
import hashlib, sys
from tierline import serving_experiments as experiments
from tierline.backends.serving import sim
from tierline.core.slo import Slo
from tierline.presets import preset_of

trace = experiments.trace_of("synthetic?mm_share=0.5&repeat=0.3&rate=60&seconds=4", 0.0, 0.0, 0, 3)
kills = (sim.Kill(1_500_000_000, "i2"),)
setup = experiments.ServingSetup(slo=Slo.parse("ttft=300ms,tpot=12ms"), kills=kills, start_ns=200_000_000)
for preset in ("adaptive", "emp", "coupled-2024", "static:2E2P4D"):
    backend, scheduler = experiments.simulate(trace, preset_of(preset), setup)
    ended = repr((backend.outcomes(), dict(scheduler.counts), [each.busy_ns for each in backend.instances]))
    print(preset, len(backend.outcomes()), hashlib.sha256(ended.encode()).hexdigest())
print(sim.__file__, file=sys.stderr)
"""


def run(path: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN], env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=True
    )


@pytest.mark.slow
def test_what_is_compiled_ends_the_same(tmp_path: Path) -> None:
    pytest.importorskip("mypyc", reason="mypy is not installed (the dev extra)")
    if shutil.which("gcc") is None and shutil.which("cc") is None:
        pytest.skip("there is no C compiler")
    made = tmp_path / "compiled"
    subprocess.run([sys.executable, ROOT / "scripts" / "compile.py", "--to", made, "--optimize", "0"], check=True)
    compiled, plain = run(str(made)), run(str(ROOT / "src"))
    assert compiled.stderr.strip().endswith(".so"), "the interpreted modules ran"
    assert plain.stderr.strip().endswith(".py")
    assert compiled.stdout == plain.stdout
