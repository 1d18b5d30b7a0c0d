"""Optuna inside a job: one call reports to the trial and to Tierline, and ends the trial when either says so.

::

    def objective(trial):
        for step in range(100):
            loss = train(...)
            report_trial(trial, step, loss)
        return loss

(A study whose trials become jobs of their own is `tierline sweep`, not this.) Extra `optuna`.
"""

from __future__ import annotations

from typing import Any

from tierline.core.errors import MissingExtra
from tierline.report import report, should_stop

try:
    import optuna
except ImportError as error:
    raise MissingExtra("reporting from an Optuna trial", "optuna") from error


def report_trial(trial: Any, step: int, value: float, metric: str = "loss", **metrics: Any) -> None:
    """`trial.report(value, step)` and `tierline.report(step, METRIC=value, **metrics)`.

    `metric` must be the job's metric; the job's direction, not the study's, says which way is better. Raises
    `optuna.TrialPruned` when Tierline asks the job to leave, or when the study's pruner wants the trial to end.
    """
    trial.report(value, step)
    report(step, **{metric: value, **metrics})
    if should_stop():
        raise optuna.TrialPruned(f"Tierline asked the job to leave at step {step}")
    if trial.should_prune():
        raise optuna.TrialPruned(f"pruned by the study at step {step}")
