"""Hugging Face Trainer: reports what it logs, and lets it save and leave when Tierline asks (extra `transformers`).

::

    from tierline.adapters.transformers import TierlineCallback
    args = TrainingArguments(output_dir=checkpoint_dir(), ...)
    Trainer(..., args=args, callbacks=[TierlineCallback()]).train(resume_from_checkpoint=resuming())
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

from tierline.core.errors import MissingExtra
from tierline.report import report, should_stop

try:
    from transformers import TrainerCallback
except ImportError as error:
    raise MissingExtra("the Hugging Face Trainer callback", "transformers") from error


class TierlineCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """`metric` is the log key that is reported as `loss`: "loss" (training), or "eval_loss" for evaluations alone.

    All other numbers are reported under their own names, so a job may be judged by any of them (`Job.metric`); the
    training loss is called `train_loss` when it is not the metric. Only the world's first process reports. When several
    processes train together each asks for itself, after the same step or the next one; use a grace period that covers it.
    """

    def __init__(self, metric: str = "loss") -> None:
        self._metric = metric

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **_: Any) -> None:
        """Training logs. Those of an evaluation are left to `on_evaluate`, which gets the same numbers."""
        if logs and state.is_world_process_zero and not any(name.startswith("eval_") for name in logs):
            self._report(state.global_step, logs)

    def on_evaluate(
        self, args: Any, state: Any, control: Any, metrics: Mapping[str, Any] | None = None, **_: Any
    ) -> None:
        if metrics and state.is_world_process_zero:
            self._report(state.global_step, metrics)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        if should_stop():
            control.should_save = True
            control.should_training_stop = True
        return control

    def _report(self, step: int, numbers: Mapping[str, Any]) -> None:
        named = {name: value for name, value in numbers.items() if isinstance(value, Real)}
        loss = named.pop(self._metric, None)
        if "loss" in named:
            named["train_loss"] = named.pop("loss")
        named.pop("step", None)
        report(step, loss=loss, **named)
