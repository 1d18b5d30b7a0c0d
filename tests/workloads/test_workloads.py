"""What the workloads promise: loads, curves, stops, and one sentence for bad input."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path

import numpy as np
import pytest

from tierline.core.errors import InvalidInput, NotFound, UnknownName
from tierline.perf.truth import Workload, clairvoyant_curves
from tierline.workloads import WORKLOADS, Scale, load
from tierline.workloads.synthetic import KINDS, curves

DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "jobs"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="the public data sets are not beside the repository")


def work_gpu_s(workload: Workload) -> float:
    return sum(e.truth.duration_s * e.truth.end_fraction * e.job.min_gpus for e in workload.entries)


def task_file(folder: Path, name: str, runs: int = 8) -> None:
    rng = np.random.default_rng(list(name.encode()))
    losses = np.minimum.accumulate(rng.uniform(0.3, 1.0, (runs, 11)), axis=1)
    losses[0, 5:] = np.inf
    np.savez(
        folder / name,
        valid_loss=losses.astype(np.float32),
        hyperparameters=rng.random((runs, 2)),
        hyperparameter_names=np.array(["lr", "beta"]),
    )


def test_taskset_follows_its_recipe(tmp_path: Path) -> None:
    for name in ("b.npz", "a.npz"):
        task_file(tmp_path, name)
    w = load(f"taskset:{tmp_path}?classes=4", Scale(jobs=10, gpus=2, load=4.0, seed=3))
    assert [s.sweep_id for s in w.sweeps] == ["a", "b"]
    assert {s.chance for s in w.sweeps} == {math.log(4)}
    assert sorted(e.job.sweep for e in w.entries) == ["a"] * 5 + ["b"] * 5
    assert len({e.truth.losses.tobytes() for e in w.entries}) == 10  # without replacement
    assert {e.job.total_steps for e in w.entries} == {10}
    assert [name for name, _ in w.entries[0].job.params] == ["lr", "beta"]
    assert w.entries[-1].time_ns / 1e9 == pytest.approx(work_gpu_s(w) / (4.0 * 2), abs=1e-5)
    for sweep, scale in zip(w.sweeps, w.normalisers, strict=True):
        losses = np.concatenate([e.truth.losses for e in w.entries if e.job.sweep == sweep.sweep_id])
        assert scale.best == losses[np.isfinite(losses)].min()


def test_taskset_reads_the_published_form_too(tmp_path: Path) -> None:
    runs = [
        {"hp": {"lr": 0.1 * i, "beta": 0.9}, "valid": {"loss": [0.7, 0.6 - 0.01 * i, float("nan")]}} for i in range(4)
    ]
    (tmp_path / "task.json").write_text(json.dumps(runs))
    w = load(f"taskset:{tmp_path}", Scale(jobs=4))
    assert [name for name, _ in w.entries[0].job.params] == ["beta", "lr"]
    assert all(e.truth.diverges for e in w.entries if e.truth.end_fraction == 1.0)


def test_a_quarter_of_the_load_is_four_times_the_time_and_nothing_else() -> None:
    light, heavy = (load("exploratory", Scale(load=x)) for x in (1.0, 4.0))
    assert light.entries[-1].time_ns == pytest.approx(4 * heavy.entries[-1].time_ns, rel=1e-9)
    for a, b in zip(light.entries, heavy.entries, strict=True):
        assert a.job == b.job
        assert a.truth.losses.tobytes() == b.truth.losses.tobytes()
    assert light.hash != heavy.hash


def test_exploratory_has_all_kinds_of_ends_and_jobs() -> None:
    w = load("exploratory?elastic=0.3&gang=0.3&fail_share=0.2", Scale(jobs=300))
    assert {e.truth.end for e in w.entries} == {"completed", "stopped", "failed"}
    assert {e.job.min_gpus for e in w.entries} == {1, 2, 4}
    elastic = [e.job for e in w.entries if e.job.max_gpus > e.job.min_gpus]
    assert 60 < len(elastic) < 120
    assert all(job.speedup[0] == (1, 1.0) and job.speedup[-1][0] == 4 for job in elastic)


def test_the_stated_curves_are_what_their_names_say() -> None:
    rng = np.random.Generator(np.random.PCG64(0))
    by_kind = {kind: curves(rng, np.full(50, i), 50, noise=0.0) for i, kind in enumerate(KINDS)}
    assert all((c[:, 0] == 1.0).all() for c in by_kind.values())
    assert (by_kind["steep"][:, 25] < 0.6).all()
    assert (by_kind["slow"][:, 5] > 0.8).all()
    assert (by_kind["plateau"][:, -1] >= 0.75).all()
    assert np.isnan(by_kind["diverge"][:, -1]).all()


def test_philly_keeps_the_traces_times_sizes_and_work(tmp_path: Path) -> None:
    file = tmp_path / "t.csv.gz"
    rows = ["timestamp,duration,num_gpus,gpu_time,cluster"]
    rows += [f"2017-10-09 07:{m:02d}:00,{100 + m}.0,{1 + m % 3},0,vc{m % 2}" for m in range(30)]
    rows.append("2017-10-09 06:00:00,50.0,64,0,vc0")
    with gzip.open(file, "wt") as out:
        out.write("\n".join(rows) + "\n")
    w = load(f"philly:{file}", Scale(gpus=8, load=0.0))
    assert [e.time_ns for e in w.entries] == [m * 60 * 10**9 for m in range(30)]
    assert work_gpu_s(w) == pytest.approx(sum((100 + m) * (1 + m % 3) for m in range(30)))
    assert w.recipe.too_large == 1  # type: ignore[attr-defined]
    assert {e.job.user for e in w.entries} == {"vc0", "vc1"}
    stretched = load(f"philly:{file}", Scale(gpus=8, load=2.0))
    assert stretched.entries[-1].time_ns / 1e9 == pytest.approx(work_gpu_s(w) / 16, abs=1e-5)


@needs_data
def test_pollux_declares_measured_speeds() -> None:
    w = load(f"pollux:{DATA / 'pollux'}", Scale(gpus=64, load=0.0))
    assert len(w.entries) == 160
    by_model = {e.job.user: e for e in w.entries}
    assert set(by_model) == {"bert", "cifar10", "deepspeech2", "imagenet", "ncf", "yolov3"}
    for entry in w.entries:
        assert entry.truth.losses[0] == 1.0
        assert entry.truth.losses.min() < 0.6
        assert all(0.5 * n < speed < 1.3 * n for n, speed in entry.job.speedup)
    assert by_model["ncf"].job.max_gpus == 1


@needs_data
def test_alibaba_rounds_fractions_up_and_keeps_failures() -> None:
    w = load(f"alibaba:{DATA / 'alibaba_openb_pods.csv.gz'}?longest_s=86400", Scale(gpus=4))
    assert {e.job.min_gpus for e in w.entries} == {1, 2, 4}
    failed = [e for e in w.entries if e.truth.end == "failed"]
    assert len(failed) > 1000
    assert max(e.truth.duration_s * e.truth.end_fraction for e in w.entries) <= 86400.001


def test_clairvoyant_curves_end_at_the_hidden_stop() -> None:
    w = load("exploratory", Scale(jobs=40))
    for entry in w.entries:
        work, utility = clairvoyant_curves(w)[entry.job.job_id]
        assert work[-1] == pytest.approx(entry.truth.duration_s * entry.truth.end_fraction)
        assert (np.diff(utility) >= 0).all()
        assert 0.0 <= utility[0] <= utility[-1] <= 1.0


@pytest.mark.parametrize(
    ("source", "scale", "error", "words"),
    [
        ("tasksets:x", Scale(), UnknownName, "did you mean 'taskset'"),
        ("taskset:nowhere", Scale(), NotFound, "needs a folder"),
        ("taskset", Scale(), NotFound, "needs a folder"),
        ("philly:nowhere.csv", Scale(), NotFound, "needs a file"),
        ("exploratory:x", Scale(), InvalidInput, "takes no path"),
        ("exploratory?nois=1", Scale(), UnknownName, "did you mean 'noise'"),
        ("exploratory?noise=loud", Scale(), InvalidInput, "takes float"),
        ("exploratory?gang=2", Scale(), InvalidInput, "0..1"),
        ("exploratory", Scale(load=0.0), InvalidInput, "--load above 0"),
        ("exploratory", Scale(jobs=-1), InvalidInput, "at least"),
    ],
)
def test_bad_sources_get_one_sentence(source: str, scale: Scale, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words) as caught:
        load(source, scale)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_traces_get_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no zip")
    (tmp_path / "a.csv").write_text("x,y\n1,2\n")
    (tmp_path / "b.csv.gz").write_bytes(b"no gzip")
    for source in (f"taskset:{tmp_path}", f"philly:{tmp_path / 'a.csv'}", f"alibaba:{tmp_path / 'b.csv.gz'}"):
        with pytest.raises(InvalidInput):
            load(source, Scale())


def test_every_registered_workload_can_be_imported() -> None:
    import importlib

    for target in WORKLOADS.values():
        module, _, function = target.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
