"""Recipes are fixed before policies are compared: their hashes are committed here and must not change.

Write the file anew (after a deliberate change of a recipe, told in docs/decisions.md) with
`python tests/workloads/test_hashes.py`.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tierline.workloads import Scale, load

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "jobs"
HASHES = Path(__file__).with_name("hashes.json")
LOADS = (1.0, 2.0, 4.0, 8.0)
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the repository")

SOURCES = {
    "taskset": (f"taskset:{DATA}", [Scale(200, 16, x, seed) for x in LOADS for seed in range(5)]),
    "exploratory": ("exploratory", [Scale(200, 16, x, seed) for x in LOADS for seed in range(5)]),
    "philly": (f"philly:{DATA / 'philly_jobs.csv.gz'}", [Scale(3000, 512, 0.0, 0)]),
    "pollux": (f"pollux:{DATA / 'pollux'}", [Scale(0, 64, 0.0, 0)]),
    "alibaba": (f"alibaba:{DATA / 'alibaba_openb_pods.csv.gz'}", [Scale(3000, 64, 1.0, 0)]),
}


def label(name: str, scale: Scale) -> str:
    return f"{name} jobs={scale.jobs} gpus={scale.gpus} load={scale.load:g} seed={scale.seed}"


def found(name: str) -> dict[str, str]:
    source, scales = SOURCES[name]
    return {label(name, scale): load(source, scale).hash for scale in scales}


@needs_data
@pytest.mark.parametrize("name", ["taskset", "philly", "pollux", "alibaba"])
def test_hashes_of_the_public_workloads_stand(name: str) -> None:
    committed = json.loads(HASHES.read_text())
    assert found(name) == {key: value for key, value in committed.items() if key.startswith(f"{name} ")}


def test_hashes_of_the_synthetic_workload_stand() -> None:
    committed = json.loads(HASHES.read_text())
    assert found("exploratory") == {key: value for key, value in committed.items() if key.startswith("exploratory ")}


def test_the_hash_tells_any_difference() -> None:
    workload = load("exploratory", Scale(jobs=5))
    first = workload.entries[0]
    changes = [
        {"gpus": 17},
        {"entries": (dataclasses.replace(first, time_ns=first.time_ns + 1), *workload.entries[1:])},
        {
            "entries": (
                dataclasses.replace(first, job=dataclasses.replace(first.job, priority=1)),
                *workload.entries[1:],
            )
        },
        {"sweeps": (dataclasses.replace(workload.sweeps[0], chance=0.9), *workload.sweeps[1:])},
    ]
    for field in ("duration_s", "stop_fraction", "fail_fraction"):
        truth = dataclasses.replace(first.truth, **{field: getattr(first.truth, field) * 0.5})
        changes.append({"entries": (dataclasses.replace(first, truth=truth), *workload.entries[1:])})
    losses = first.truth.losses.copy()
    losses[-1] = 0.123
    truth = dataclasses.replace(first.truth, losses=losses)
    changes.append({"entries": (dataclasses.replace(first, truth=truth), *workload.entries[1:])})
    hashes = {dataclasses.replace(workload, **change).hash for change in changes}
    assert len(hashes | {workload.hash}) == len(changes) + 1


if __name__ == "__main__":
    table = {key: value for name in SOURCES for key, value in found(name).items()}
    HASHES.write_text(json.dumps(table, indent=1) + "\n")
