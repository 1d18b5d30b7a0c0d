"""Serving workloads are fixed before policies are compared: their hashes are committed here and must not change.

Write the file anew (after a deliberate change, told in docs/decisions.md) with
`python tests/workloads/test_serving_hashes.py`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tierline.workloads.serving import judged, load_served
from tierline.workloads.serving.judged import cells

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "serving"
HASHES = Path(__file__).with_name("serving_hashes.json")
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the repository")

SYNTHETIC = (
    "synthetic?requests=2000&rate=20&repeat=0.1&prefix_share=0.3",
    "synthetic?seconds=100&mm_share=0.2&mm_share_end=0.8&context=4096",
    "synthetic?seconds=120&rate=30&burst_every_s=30&burst_s=5&burst_factor=5&cv=2",
)
"""Besides the judged grid: their hashes stand without any data."""
RATE, SECONDS = 16.0, 120.0
"""Of the judged cells whose hashes are committed; a study at another rate prints its own."""


def synthetic_hashes() -> dict[str, str]:
    return {source: load_served(source).workload_hash for source in SYNTHETIC}


def judged_hashes() -> dict[str, str]:
    return {
        f"judged rate={RATE:g} seconds={SECONDS:g} mm_share={mm:g} repeat={repeat:g} load={load} seed={seed}": judged(
            DATA, RATE, SECONDS, mm_share=mm, repeat=repeat, load=load, seed=seed
        ).workload_hash
        for seed, (mm, repeat, load) in enumerate(cells())
    }


def test_hashes_of_synthetic_workloads_stand() -> None:
    committed = json.loads(HASHES.read_text())
    assert synthetic_hashes() == {key: value for key, value in committed.items() if key.startswith("synthetic")}


@needs_data
def test_hashes_of_the_judged_workloads_stand() -> None:
    committed = json.loads(HASHES.read_text())
    assert judged_hashes() == {key: value for key, value in committed.items() if key.startswith("judged ")}


@needs_data
def test_a_judged_workload_is_what_it_says() -> None:
    trace = judged(DATA, 40.0, 300.0, mm_share=0.8, repeat=0.3, load="bursts", seed=2)
    requests = trace.requests
    assert len(requests) / 300 == pytest.approx(40.0, rel=0.06)
    assert np.mean([r.stream != "azure" for r in requests]) == pytest.approx(0.8, abs=0.015)
    images = [image.content_hash for r in requests for image in r.images]
    assert 1 - len(set(images)) / len(images) == pytest.approx(0.3, abs=0.02)
    assert max(r.prompt_tokens + r.output_tokens for r in requests) <= 32768
    assert sum(r.stream == "azure" for r in requests) == 2400
    assert load_served(trace.source, seed=2).workload_hash == trace.workload_hash


if __name__ == "__main__":
    HASHES.write_text(json.dumps(synthetic_hashes() | judged_hashes(), indent=1) + "\n")
