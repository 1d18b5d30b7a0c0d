"""Every example prints what stands beside it in its `.out`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "examples"
EXAMPLES = sorted(FOLDER.glob("[0-9][0-9]_*.py"))
LIMIT_S = 300
SERVING = {
    "calibrate_gain_cost": ("--profile", "h100:Qwen2.5-VL-7B"),
    "simple_usage": (),
    "demo_with_workload": ("--instances", "2", "--rate", "4", "--seconds", "5", "--stretch", "2"),
}
"""ElasticMM's three steps under their names, with what keeps a test of them small."""


def test_there_are_examples() -> None:
    assert [example.name[:2] for example in EXAMPLES] == [f"{i:02d}" for i in range(1, len(EXAMPLES) + 1)]
    assert len(EXAMPLES) >= 3


def run_example(example: Path, folder: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TIERLINE_")}
    done = subprocess.run(
        [sys.executable, str(example), *arguments],
        cwd=folder,
        env=environment | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done.stdout


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.stem)
def test_example_prints_its_output(example: Path, tmp_path: Path) -> None:
    assert run_example(example, tmp_path) == example.with_suffix(".out").read_text()


def masked(text: str) -> str:
    """Without what another moment or machine would make another: times, shares, who did what."""
    text = re.sub(r"for (shared|text|multimodal)", "for GROUP", re.sub(r": [EPD]+ for", ": ROLES for", text))
    text = re.sub(r"by the policy: .*?;", "by the policy: CHANGES;", text)
    return re.sub(r" +", " ", re.sub(r"\bnan\b|\d+(\.\d+)?", "#", text))


@pytest.mark.parametrize("name", SERVING)
def test_a_step_of_the_serving_tier_prints_its_output(name: str, tmp_path: Path) -> None:
    if name != "calibrate_gain_cost":
        for module in ("torch", "transformers", "zmq", "PIL", "httptools"):
            pytest.importorskip(module)
    example = FOLDER / f"{name}.py"
    printed, wanted = run_example(example, tmp_path, *SERVING[name]), example.with_suffix(".out").read_text()
    if name != "demo_with_workload":
        assert printed == wanted
        return
    assert masked(printed) == masked(wanted)
    first = printed.splitlines()[0]
    assert first == wanted.splitlines()[0], "as many requests as the workload has, all answered"
    texts, images = (int(line.split(" answered")[0].split()[-1]) for line in printed.splitlines()[1:3])
    assert min(texts, images) > 0
    encoded = [int(line.split()[-3]) for line in printed.splitlines() if "images encoded" in line]
    # Each picture is new, and with two the server was asked how it counts; the last word of an instance may be a moment old.
    assert 2 < sum(encoded) <= images + 2


def test_the_training_of_the_demo_learns_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    """Two attempts of half the budget each: the second one begins where the first was asked to stop."""
    pytest.importorskip("sklearn", reason="the extra 'demo' is not installed")
    environment = os.environ | {
        "TIERLINE_REPORT_FILE": str(tmp_path / "reports.jsonl"),
        "TIERLINE_CHECKPOINT_DIR": str(tmp_path / "checkpoints"),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, str(FOLDER / "train_digits.py"), "--lr", "0.05", "--width", "64"]
    first = subprocess.Popen(
        [*command, "--budget", "60"], env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path
    )
    assert first.stdout is not None
    lines = [first.stdout.readline() for _ in range(4)]
    first.terminate()
    rest, _ = first.communicate(timeout=LIMIT_S)
    assert first.returncode == 0
    lines += rest.splitlines()
    steps = [int(line.split()[1]) for line in lines]
    losses = [float(line.split()[3]) for line in lines]
    assert losses[-1] < 0.7 * losses[0]
    assert (tmp_path / "checkpoints" / "mlp.npz").exists()

    used_s = float(lines[-1].split()[-2])
    second = subprocess.run(
        [*command, "--budget", str(used_s + 0.5)],
        env=environment | {"TIERLINE_RESUME": "1"},
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=True,
        cwd=tmp_path,
    )
    resumed = second.stdout.splitlines()
    assert int(resumed[0].split()[1]) > steps[-1]
    assert float(resumed[0].split()[3]) < 0.7 * losses[0]
    assert float(resumed[0].split()[-2]) >= used_s
