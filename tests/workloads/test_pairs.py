"""Gavel's measured pairs as kinds, truths and priors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tierline import experiments
from tierline.backends.jobs.sim import uniform_nodes
from tierline.core.errors import InvalidInput, NotFound, UnknownName
from tierline.core.nouns import NS_PER_S
from tierline.experiments import Experiment, as_json, run_all
from tierline.workloads import Scale, load
from tierline.workloads.pairs import parse, read_pairs, start_of, with_pairs

GAVEL = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "jobs" / "gavel_simulation_throughputs.json"
needs_data = pytest.mark.skipif(not GAVEL.is_file(), reason="the public data sets are not beside the repository")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Two GPU types, kinds x and y; together on the old type they do badly, on the new one well."""

    def table(alone: float, xy: list[float]) -> dict[str, dict[str, object]]:
        x, y = "('x', 1)", "('y', 1)"
        return {
            x: {"null": alone, x: [alone * 0.6, alone * 0.6], y: xy},
            y: {"null": 2 * alone, x: xy[::-1], y: [alone, alone]},
            "('x', 2)": {"null": 9.0, "('y', 2)": [1.0, 1.0]},
        }

    path = tmp_path / "pairs.json"
    path.write_text(json.dumps({"old": table(4.0, [1.0, 2.0]), "new": table(10.0, [9.0, 30.0]), "none": {}}))
    return path


def test_speeds_are_relative_to_alone_and_clipped(small: Path) -> None:
    tables = read_pairs(small)
    assert tables["old"] == {("x", "x"): 0.6, ("x", "y"): 0.25, ("y", "x"): 0.25, ("y", "y"): 0.5}
    assert tables["new"]["y", "x"] == 1.0  # 30 of 20
    assert tables["none"] == {}


@pytest.mark.parametrize("text", ["[]", "{", '{"v100": {"x": {}}}', '{"v100": {"(\'x\', 1)": {"null": "fast"}}}'])
def test_a_file_of_another_kind_is_told_in_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "wrong.json"
    path.write_text(text)
    with pytest.raises(InvalidInput, match=r"wrong.json is no file of measured pairs as Gavel has them"):
        read_pairs(path)
    with pytest.raises(NotFound, match="--pairs needs a file"):
        read_pairs(tmp_path / "absent.json")


def test_options_are_checked(small: Path) -> None:
    with pytest.raises(UnknownName, match="hidde"):
        parse(f"{small}?hidde=1")
    with pytest.raises(InvalidInput, match=r"hidden and noise must lie in 0\.\.1"):
        parse(f"{small}?hidden=1.5")
    workload = load("exploratory", Scale(jobs=5))
    with pytest.raises(UnknownName, match="GPU type of the measured pairs"):
        with_pairs(workload, f"{small}?truth=nwe", 0)
    with pytest.raises(UnknownName, match="none"):
        with_pairs(workload, f"{small}?truth=none", 0)


def test_jobs_get_a_kind_by_seed_and_keep_one_they_name(small: Path) -> None:
    plain = load("exploratory", Scale(jobs=40))
    found = with_pairs(plain, f"{small}?truth=new&start=old", 3)
    kinds = [entry.job.job_type for entry in found.entries]
    assert set(kinds) == {"x", "y"}
    assert found.pair_speed == read_pairs(small)["new"]
    assert found.hash != plain.hash
    assert with_pairs(plain, f"{small}?truth=new&start=new&window=0", 3).hash == found.hash  # the same workload
    assert with_pairs(plain, f"{small}?truth=old", 3).hash != found.hash
    assert [entry.job.job_type for entry in with_pairs(found, f"{small}?truth=new", 4).entries] == kinds


def test_what_predictions_start_from_hides_both_directions_of_a_pair(small: Path) -> None:
    told, window_ns, noise = start_of(f"{small}?truth=new&start=old&window=30&noise=0.1", 0)
    assert {(p.job_type, p.beside): p.speed for p in told} == read_pairs(small)["old"]
    assert (window_ns, noise) == (30 * NS_PER_S, 0.1)
    for seed in range(20):
        part = {(p.job_type, p.beside) for p in start_of(f"{small}?start=old&hidden=0.5", seed)[0]}
        assert (("x", "y") in part) == (("y", "x") in part)
    assert start_of(f"{small}?start=old&hidden=1", 0)[0] == ()


def test_sharing_runs_from_the_command_line_down_to_the_figures(small: Path) -> None:
    experiment = Experiment(
        "exploratory", uniform_nodes(4), ("fifo",), jobs=24, loads=(4.0,), seeds=2,
        pairs=f"{small}?truth=new&start=old", share=True,
    )  # fmt: skip
    runs = run_all(experiment)
    found = json.loads(json.dumps(as_json(experiment, runs), allow_nan=False))
    assert (found["pairs"], found["share"]) == ("pairs.json?truth=new&start=old", True)
    sharing = found["policies"]["fifo"]["sharing"]
    assert sharing["mean"]["packs"] > 0
    assert len(sharing["seeds"]) == 2
    assert all(run.judgement.unfinished == 0 and run.judgement.idle_gpu_s == 0 for run in runs)
    assert run_all(experiment) == runs
    exclusive = run_all(Experiment(**{**_fields(experiment), "share": False}))
    assert [run.hash for run in exclusive] == [run.hash for run in runs]
    assert all(run.sharing is None for run in exclusive)


def _fields(experiment: Experiment) -> dict[str, object]:
    return {name: getattr(experiment, name) for name in experiment.__slots__}


def test_sharing_without_pairs_is_refused() -> None:
    with pytest.raises(InvalidInput, match="--share needs --pairs FILE"):
        Experiment("exploratory", uniform_nodes(4), ("fifo",), share=True)


@needs_data
def test_gavels_file_says_what_is_known_of_it() -> None:
    tables = read_pairs(GAVEL)
    v100 = tables["v100"]
    kinds = {kind for kind, _ in v100}
    assert len(kinds) == 26
    assert len(v100) == 26 * 26
    unordered = [(v100[a, b], v100[b, a]) for a in kinds for b in kinds if a <= b]
    fitting = [pair for pair in unordered if pair != (0.0, 0.0)]
    assert (len(unordered), len(fitting)) == (351, 330)
    assert sum(one + other <= 1.0 for one, other in fitting) / len(fitting) == pytest.approx(0.218, abs=0.001)
    assert max(v100.values()) == 1.0


@needs_data
def test_a_misprediction_is_corrected_and_costs_less_than_leaving_it(small: Path) -> None:
    """Real pairs, predictions from another GPU type: bad pairs are shorter once slowdowns are seen."""
    lasted = {}
    for options in ("", "?window=0"):
        experiment = Experiment(
            "exploratory", uniform_nodes(8), ("fifo",), jobs=80, loads=(4.0,), pairs=f"{GAVEL}{options}", share=True
        )
        (run,) = experiments.run_all(experiment)
        assert run.sharing is not None and run.sharing.bad > 0
        lasted[options] = run.sharing.mean_bad_s
    assert lasted[""] < 0.2 * lasted["?window=0"]
