"""Each adapter with its real library where it can be had without a deep-learning stack, else against its interface."""

from __future__ import annotations

import importlib
import json
import sys
import types
from pathlib import Path

import pytest

from tierline.core.errors import MissingExtra


@pytest.fixture
def job(tmp_path, monkeypatch):
    """As inside a job: a report file, and a stop flag that the test may raise."""
    monkeypatch.setenv("TIERLINE_REPORT_FILE", str(tmp_path / "reports.jsonl"))
    monkeypatch.setenv("TIERLINE_CHECKPOINT_DIR", str(tmp_path / "checkpoints"))
    monkeypatch.setenv("TIERLINE_ATTEMPT", "1")
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys.modules["tierline.report"], "_install_handler", lambda: None)
    return Job(tmp_path)


class Job:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def reports(self) -> list[dict]:
        path = self.folder / "reports.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        return [{k: v for k, v in json.loads(line).items() if k != "time_ns"} for line in lines]

    def ask_to_leave(self) -> None:
        (self.folder / "attempt-1").mkdir()
        (self.folder / "attempt-1" / "stop").touch()


@pytest.mark.parametrize("name", ["transformers", "optuna", "lightning"])
def test_without_its_library_an_adapter_names_the_extra(monkeypatch, name):
    for module in ("transformers", "optuna", "lightning", "lightning.pytorch", "pytorch_lightning"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, f"tierline.adapters.{name}", raising=False)
    with pytest.raises(MissingExtra, match=rf"pip install 'tierline\[{name}\]'"):
        importlib.import_module(f"tierline.adapters.{name}")


def transformers_parts():
    pytest.importorskip("transformers")
    from transformers import TrainerCallback, TrainerControl, TrainerState

    from tierline.adapters.transformers import TierlineCallback

    assert issubclass(TierlineCallback, TrainerCallback)
    return TierlineCallback, TrainerControl, TrainerState


def test_the_trainer_callback_reports_logs_and_evaluations(job):
    callback_class, control_class, state_class = transformers_parts()
    callback, control = callback_class(), control_class()
    state = state_class(global_step=10, is_world_process_zero=True)
    callback.on_log(None, state, control, logs={"loss": 0.5, "grad_norm": 2.0, "note": "text"})
    evaluation = {"eval_loss": 0.7, "eval_accuracy": 0.9}
    callback.on_log(None, state, control, logs=evaluation)  # the Trainer tells evaluations to both
    callback.on_evaluate(None, state, control, metrics=evaluation)
    state_class_other = state_class(global_step=11, is_world_process_zero=False)
    callback.on_log(None, state_class_other, control, logs={"loss": 0.1})
    assert job.reports() == [
        {"step": 10, "loss": 0.5, "grad_norm": 2.0},
        {"step": 10, "eval_loss": 0.7, "eval_accuracy": 0.9},
    ]


def test_the_trainer_callback_may_be_judged_by_evaluations(job):
    callback_class, control_class, state_class = transformers_parts()
    callback, control, state = callback_class("eval_loss"), control_class(), state_class(global_step=3)
    callback.on_log(None, state, control, logs={"loss": 0.5})
    callback.on_evaluate(None, state, control, metrics={"eval_loss": 0.7})
    assert job.reports() == [{"step": 3, "train_loss": 0.5}, {"step": 3, "loss": 0.7}]


def test_the_trainer_saves_and_stops_when_asked(job):
    callback_class, control_class, state_class = transformers_parts()
    from transformers.trainer_callback import CallbackHandler

    handler = CallbackHandler([callback_class()], None, None, None, None)
    control = handler.on_step_end(None, state_class(), control_class())
    assert not (control.should_save or control.should_training_stop)
    job.ask_to_leave()
    control = handler.on_step_end(None, state_class(), control_class())
    assert control.should_save
    assert control.should_training_stop


def test_an_optuna_trial_reports_and_ends_when_asked(job):
    optuna = pytest.importorskip("optuna")
    from tierline.adapters.optuna import report_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)

    def objective(trial):
        for step in range(10):
            if step == 3:
                job.ask_to_leave()
            report_trial(trial, step, 1 / (step + 1), lr=0.5)
        return 0.0

    study = optuna.create_study(pruner=optuna.pruners.NopPruner())
    study.optimize(objective, n_trials=1)
    assert study.trials[0].state is optuna.trial.TrialState.PRUNED
    assert list(study.trials[0].intermediate_values) == [0, 1, 2, 3]
    assert job.reports() == [{"step": k, "loss": 1 / (k + 1), "lr": 0.5} for k in range(4)]


def test_the_studys_own_pruner_still_works(job):
    optuna = pytest.importorskip("optuna")
    from tierline.adapters.optuna import report_trial

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(direction="maximize", pruner=optuna.pruners.ThresholdPruner(lower=0.5))
    study.optimize(lambda trial: report_trial(trial, 1, 0.1, metric="accuracy"), n_trials=1)
    assert study.trials[0].state is optuna.trial.TrialState.PRUNED
    assert job.reports() == [{"step": 1, "accuracy": 0.1}]


class LightningTrainer:
    """What the callback uses of lightning.pytorch.Trainer."""

    def __init__(self, **metrics: float) -> None:
        self.callback_metrics = metrics
        self.log_every_n_steps = 2
        self.global_step = 0
        self.is_global_zero = True
        self.sanity_checking = False
        self.should_stop = False
        self.saved: list[Path] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path)


@pytest.fixture
def lightning_callback(monkeypatch):
    """The callback class over a module of Lightning's interface: the real one brings all of torch."""
    pytorch = types.ModuleType("lightning.pytorch")
    pytorch.Callback = type("Callback", (), {})
    monkeypatch.setitem(sys.modules, "lightning", types.ModuleType("lightning"))
    monkeypatch.setitem(sys.modules, "lightning.pytorch", pytorch)
    monkeypatch.delitem(sys.modules, "tierline.adapters.lightning", raising=False)
    yield importlib.import_module("tierline.adapters.lightning").TierlineCallback
    sys.modules.pop("tierline.adapters.lightning", None)


def test_lightning_reports_training_and_validation(job, lightning_callback):
    trainer = LightningTrainer(train_loss=0.5, acc=0.25)
    for trainer.global_step in (1, 2, 3, 4):
        lightning_callback("train_loss").on_train_batch_end(trainer, None, None, None, 0)
    assert job.reports() == [{"step": 2, "loss": 0.5, "acc": 0.25}, {"step": 4, "loss": 0.5, "acc": 0.25}]
    validation = LightningTrainer(val_loss=0.7)
    validation.sanity_checking = True
    lightning_callback("val_loss").on_validation_end(validation, None)
    validation.sanity_checking = False
    lightning_callback("val_loss").on_validation_end(validation, None)
    assert job.reports()[2:] == [{"step": 0, "loss": 0.7}]


def test_lightning_saves_once_and_stops_when_asked(job, lightning_callback):
    trainer, callback = LightningTrainer(train_loss=0.5), lightning_callback()
    job.ask_to_leave()
    for trainer.global_step in (1, 2):
        callback.on_train_batch_end(trainer, None, None, None, 0)
    assert trainer.should_stop
    assert trainer.saved == [job.folder / "checkpoints" / "last.ckpt"]
