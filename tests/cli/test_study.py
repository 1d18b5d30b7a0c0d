"""An Optuna study over a faked daemon: trials become jobs, and their ends become trial states."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import FakeDaemon, Outcome

optuna = pytest.importorskip("optuna", reason="the extra 'optuna' is not installed")
Tierline = Callable[..., Outcome]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, daemon: FakeDaemon) -> Path:
    from tierline.cli import client, study

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "connect", client.connect)
    (tmp_path / "train.py").write_text("")
    return tmp_path


def end(daemon: FakeDaemon, ids: list[str]) -> None:
    """Every job ends at once: number 1 is stopped, number 2 fails, the others reach (x - 3)²."""
    for job_id in ids:
        job = daemon.jobs[job_id]
        number = int(job_id.rpartition("-")[2])
        loss = (float(job["argv"][-1]) - 3) ** 2
        job["phase"] = {1: "stopped", 2: "failed"}.get(number, "completed")
        job["best_loss"] = loss
        daemon.reports[job_id] = [{"step": 0, "loss": loss, "time_ns": 1, "attempt": 1}]


def test_trials_are_asked_as_slots_free_up_and_told_how_they_ended(
    daemon: FakeDaemon, tierline: Tierline, folder: Path
) -> None:
    most_live = 0

    def on_submit(fake: FakeDaemon, ids: list[str]) -> None:
        nonlocal most_live
        live = [job for job in fake.jobs if fake.jobs[job]["phase"] == "queued"]
        most_live = max(most_live, len(live))
        if len(live) == 2:
            end(fake, live)

    daemon.on_submit = on_submit
    storage = f"sqlite:///{folder}/study.db"
    options = ["--name", "s", "--random", "x=0..10", "--trials", "6", "--sampler", "tpe", "--parallel", "2"]
    answer = tierline("sweep", *options, "--storage", storage, "--json", "--", sys.executable, "train.py", "{x}")
    assert answer.code == 0, answer.err
    assert most_live == 2
    trials = json.loads(answer.out)["trials"]
    assert [t["state"] for t in trials] == ["COMPLETE", "PRUNED", "FAIL", "COMPLETE", "COMPLETE", "COMPLETE"]
    assert all(
        t["value"] == pytest.approx((t["params"]["x"] - 3) ** 2, rel=1e-4) for t in trials if t["state"] == "COMPLETE"
    )
    study = optuna.load_study(study_name="s", storage=storage)
    assert study.trials[1].intermediate_values[0] == pytest.approx((study.trials[1].params["x"] - 3) ** 2, rel=1e-4)
    study._storage.remove_session()


def test_a_function_defines_the_space(daemon: FakeDaemon, tierline: Tierline, folder: Path) -> None:
    (folder / "space.py").write_text(
        "def suggest(trial):\n    return {'x': trial.suggest_int('x', 0, 9), 'kind': trial.suggest_categorical('k', 'ab')}\n"
    )
    daemon.on_submit = lambda fake, ids: fake.jobs[ids[0]].update(phase="completed", best_loss=1.0)
    command = ["--", sys.executable, "train.py", "{kind}", "{x}"]
    answer = tierline("sweep", "--name", "s", "--optuna", "space.py:suggest", "--trials", "3", *command)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("s: 3 complete; best 1 (")
    assert all(body["jobs"][0]["params"]["kind"] in "ab" for body in daemon.posted)


@pytest.mark.parametrize("name", ["gone:f", "space.py:gone", "gone.py:f", "space"])
def test_a_function_that_is_not_there_is_one_sentence(
    daemon: FakeDaemon, tierline: Tierline, folder: Path, name: str
) -> None:
    (folder / "space.py").write_text("")
    answer = tierline("sweep", "--optuna", name, "--trials", "3", "--", sys.executable, "train.py", "{x}")
    assert f"--optuna '{name}'" in answer.sentence
    assert daemon.posted == []


def test_a_refused_trial_is_not_left_running_in_the_study(daemon: FakeDaemon, tierline: Tierline, folder: Path) -> None:
    daemon.refusal = (422, "no.")
    storage = f"sqlite:///{folder}/study.db"
    options = ["--name", "s", "--random", "x=0..1", "--trials", "3", "--sampler", "random", "--storage", storage]
    assert tierline("sweep", *options, "--", sys.executable, "train.py", "{x}").sentence == "tierline: no."
    study = optuna.load_study(study_name="s", storage=storage)
    assert [t.state.name for t in study.trials] == ["FAIL"]
    study._storage.remove_session()
