"""Make a copy of the package whose hot modules of the serving tier are compiled by mypyc (scripts/compile).

Policies stay as they are: people write their own. So do modules with what mypyc has no native form for (msgspec Structs,
protocols that are checked at run time, class variables of dataclasses).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = {  # by folder
    "": "clock",
    "backends/serving/": "sim sim_device sim_instance sim_messages sim_prompts",
    "perf/": "curves_of_time device_sharing serving_demand stage_time",
    "runtime/": "driver",
    "schedulers/": "embedding_pool instance instance_images instance_moves instance_sleep instance_state instance_view "
    "kv_blocks lockstep prefix_index sequence serving serving_answers serving_attempts serving_elastic serving_fleet "
    "serving_images serving_moves serving_queue serving_state",
}
SETUP = """
from mypyc.build import mypycify
from setuptools import setup
setup(
    name="compiled", packages=[], py_modules=[],
    ext_modules=mypycify(["--config-file=", *{paths}], opt_level="{level}", multi_file=True, debug_level="0"),
    script_args=["--quiet", "build_ext", "--inplace", "--parallel={cores}", "--build-temp=../objects"],
)
"""


def stamp_of(level: str) -> str:
    """What the build is made from: every file of the package, the compilers, this script."""
    digest = hashlib.sha256(f"{sys.version} {version('mypy')} {level}".encode())
    package = ROOT / "src" / "tierline"
    for path in [Path(__file__), *sorted(package.rglob("*"))]:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def build(built: Path, level: str, stamp: str) -> None:
    """Make it anew beside what is there, and put it in its place when it is whole."""
    built.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=built.parent, prefix="compiled-") as name:
        new = Path(name) / "new"
        shutil.copytree(ROOT / "src", new, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        paths = [f"tierline/{folder}{name}.py" for folder, names in MODULES.items() for name in names.split()]
        code = SETUP.format(paths=paths, level=level, cores=os.cpu_count() or 1)
        done = subprocess.run([sys.executable, "-c", code], cwd=new, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"scripts/compile: mypyc or the C compiler failed:\n{done.stdout}{done.stderr}")
        for left in ("build", ".mypy_cache"):
            shutil.rmtree(new / left, ignore_errors=True)
        (new / "stamp").write_text(stamp)
        if built.exists():
            built.rename(Path(name) / "old")
        new.rename(built)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, default=ROOT / "build" / "compiled", help="the folder that it is made in")
    parser.add_argument("--optimize", default="2", choices=("0", "1", "2", "3"), help="the C compiler's -O")
    told = parser.parse_args()
    known, stamp = told.to / "stamp", stamp_of(told.optimize)
    if known.exists() and known.read_text() == stamp:
        return
    print(f"scripts/compile: compiling the serving tier into {told.to} (a minute or two)", file=sys.stderr, flush=True)
    build(told.to.resolve(), told.optimize, stamp)


if __name__ == "__main__":
    main()
