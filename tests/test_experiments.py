"""Compositions of simulated runs: same arrivals for everybody, honest figures, one sentence for bad input."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tierline import experiments
from tierline.backends.jobs.sim import uniform_nodes
from tierline.core.errors import InvalidInput, UnknownName
from tierline.experiments import Experiment, Run, as_json, parse_nodes, parse_policies, parse_policy, run_all
from tierline.policies.jobs import POLICIES
from tierline.runtime.codec import decode_event
from tierline.runtime.simulated_runs import spread

SMALL = Experiment(
    "exploratory", uniform_nodes(4), ("fifo", "explsched", "clairvoyant"), jobs=30, loads=(4.0,), seeds=2
)


@pytest.fixture(scope="module")
def runs() -> list[Run]:
    """Of `SMALL`, in this process."""
    return run_all(SMALL)


def test_every_policy_gets_the_same_workload_and_stays_below_the_bound(runs: list[Run]) -> None:
    assert [(run.seed, run.policy) for run in runs] == [(s, p) for s in (0, 1) for p in SMALL.policies]
    for seed in (0, 1):
        assert len({run.hash for run in runs if run.seed == seed}) == 1
    assert len({run.hash for run in runs}) == 2
    for run in runs:
        assert 0.0 < run.judgement.utility <= run.bound + 1e-6
        assert run.judgement.of_bound == pytest.approx(run.judgement.utility / run.bound)
        assert run.judgement.unfinished == 0


def test_a_run_repeats_exactly_and_in_any_process(runs: list[Run]) -> None:
    assert run_all(SMALL, workers=2) == runs


def test_results_as_json_hold_what_was_promised(runs: list[Run]) -> None:
    found = json.loads(json.dumps(as_json(SMALL, runs), allow_nan=False))
    assert found["loads"]["4"]["policies"] == found["policies"]
    assert [w["seed"] for w in found["workloads"]] == [0, 1]
    assert found["workloads"][0]["hash"] == runs[0].hash
    assert found["recipe"]["options"]["sweep_size"] == 20
    assert found["policies"]["clairvoyant"]["sees_the_future"] is True
    fifo = found["policies"]["fifo"]
    assert set(fifo["mean"]) >= {
        "utility",
        "utility_auc",
        "of_bound",
        "best_regret",
        "mean_jct_s",
        "makespan_s",
        "wasted_gpu_s",
        "idle_gpu_s",
        "preemptions",
    }
    assert fifo["mean"]["utility"] == pytest.approx(sum(s["utility"] for s in fifo["seeds"]) / 2)
    assert found["ratios"] == {}  # none of the paper's four was run


def test_ratios_are_of_means_over_the_papers_four() -> None:
    some = Experiment("exploratory", uniform_nodes(4), ("explsched", "fair", "slaq"), jobs=30, loads=(4.0,))
    found = as_json(some, run_all(some))
    mean = {name: policy["mean"]["utility"] for name, policy in found["policies"].items()}
    assert found["ratios"]["fair"] == pytest.approx(mean["explsched"] / mean["fair"] - 1)
    assert found["ratios"]["mean"] == pytest.approx((found["ratios"]["fair"] + found["ratios"]["slaq"]) / 2)


def test_no_folder_of_this_machine_is_in_the_results(tmp_path: Path) -> None:
    assert experiments._public_name(f"taskset:{tmp_path}/jobs?classes=3") == "taskset:jobs?classes=3"
    assert experiments._public_name("exploratory") == "exploratory"


def test_spread_is_students_interval() -> None:
    # two values one apart: half width = t(0.975, 1) · 0.5 = 12.706 · 0.5
    assert spread([1.0, 2.0]).mean == 1.5
    assert spread([1.0, 2.0]).half == pytest.approx(6.353, abs=1e-3)
    assert spread([3.0]).half == 0.0


def test_events_are_written_as_the_event_table_names_them(tmp_path: Path) -> None:
    one = Experiment("exploratory", uniform_nodes(2), ("fifo",), jobs=3)
    run_all(one, events=tmp_path / "events.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert rows[0]["kind"] == "NodeJoined"
    assert [row["time_ns"] for row in rows] == sorted(row["time_ns"] for row in rows)
    for row in rows:
        decode_event(row["kind"], json.dumps(row["event"]))
    starts = [action for row in rows for action in row["actions"] if action["type"] == "StartJob"]
    assert len(starts) == 3
    with pytest.raises(InvalidInput, match="--events records one run"):
        run_all(SMALL, events=tmp_path / "no")
    assert not (tmp_path / "no").exists()


def test_clusters_of_several_types_give_jobs_their_speeds() -> None:
    nodes = parse_nodes("1x4:v100,2x2:k80")
    assert [(len(n.devices), n.devices[0].gpu_type) for n in nodes] == [(4, "v100"), (2, "k80"), (2, "k80")]
    workload = experiments.build_workload("exploratory", nodes, 10, 1.0, 0)
    assert dict(workload.entries[0].job.type_speed) == pytest.approx({"k80": 1.0, "v100": 3.36})
    found = run_all(Experiment("exploratory", nodes, ("explsched",), jobs=10, loads=(2.0,)))[0].judgement
    assert (found.unfinished, found.idle_gpu_s) == (0, 0.0)


def test_stragglers_and_lost_nodes_slow_a_run_down_and_end_it_nevertheless() -> None:
    calm = Experiment("exploratory?stop_share=0", uniform_nodes(8, 2), ("las",), jobs=30, loads=(2.0,))
    rough = Experiment(calm.source, calm.nodes, ("las",), jobs=30, loads=(2.0,), stragglers=0.5, node_loss_per_day=10.0)
    fair, foul = run_all(calm)[0].judgement, run_all(rough)[0].judgement
    assert foul.unfinished == 0
    assert foul.makespan_s > fair.makespan_s
    assert foul.utility < fair.utility


@pytest.mark.parametrize("text", ["x", "2x", "0x8:v100", "2x8:v100,", "axb"])
def test_bad_clusters(text: str) -> None:
    with pytest.raises(InvalidInput, match="--nodes takes"):
        parse_nodes(text)


def test_a_job_wider_than_the_cluster_is_refused() -> None:
    with pytest.raises(InvalidInput, match="needs 4 GPUs of one type at once, but the cluster has 2"):
        run_all(Experiment("exploratory?gang=0.5", uniform_nodes(2), ("fifo",), jobs=20))


def test_policies_and_their_options() -> None:
    assert parse_policies("all") == tuple(POLICIES)
    assert parse_policies("fifo, las,fifo") == ("fifo", "las")
    assert parse_policy("explsched?priced=false")[1] == {"priced": False}
    with pytest.raises(UnknownName, match="did you mean 'fifo'"):
        parse_policies("fifi")
    with pytest.raises(UnknownName, match="option of policy"):
        parse_policy("explsched?price=0")
    with pytest.raises(InvalidInput, match="takes a bool"):
        parse_policy("explsched?priced=maybe")
    with pytest.raises(InvalidInput, match="--policy takes"):
        parse_policies(",")


def test_a_workload_too_large_for_the_bound_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experiments, "BOUND_MOST_JOBS", 10)
    experiments.bound_of.cache_clear()
    run = run_all(Experiment("exploratory", uniform_nodes(4), ("fifo",), jobs=11, seed=77))[0]
    assert math.isnan(run.bound)
    assert math.isnan(run.judgement.of_bound)
