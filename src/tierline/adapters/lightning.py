"""Lightning: reports the logged metrics, and lets the trainer save and leave when Tierline asks (extra `lightning`).

::

    from tierline.adapters.lightning import TierlineCallback
    trainer = Trainer(callbacks=[TierlineCallback("val_loss")])
    trainer.fit(model, ckpt_path=str(checkpoint_dir() / "last.ckpt") if resuming() else None)
"""

from __future__ import annotations

from typing import Any

from tierline.core.errors import MissingExtra
from tierline.report import checkpoint_dir, report, should_stop

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise MissingExtra("the Lightning callback", "lightning") from error


class TierlineCallback(Callback):  # type: ignore[misc, unused-ignore]
    """`metric` names the logged number that is reported as `loss`; all others are reported under their own names.

    A metric that begins with "val" is reported after each validation, any other every `log_every_n_steps` batches. On
    `should_stop()` the trainer saves `last.ckpt` in the checkpoint folder and ends after the batch. Saving is collective
    in distributed training; there, leave it to a `ModelCheckpoint` with `save_last` by passing `save=False`.
    """

    def __init__(self, metric: str = "train_loss", save: bool = True) -> None:
        self._metric = metric
        self._save = save

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        every = max(1, trainer.log_every_n_steps)
        if not self._metric.startswith("val") and trainer.global_step % every == 0:
            self._report(trainer)
        if should_stop() and not trainer.should_stop:
            if self._save:
                trainer.save_checkpoint(checkpoint_dir() / "last.ckpt")
            trainer.should_stop = True

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        if self._metric.startswith("val") and not trainer.sanity_checking:
            self._report(trainer)

    def _report(self, trainer: Any) -> None:
        numbers = dict(trainer.callback_metrics)
        if self._metric not in numbers or not trainer.is_global_zero:
            return
        loss = numbers.pop(self._metric)
        for taken in ("step", "loss", "time_ns"):
            numbers.pop(taken, None)
        report(trainer.global_step, loss=loss, **numbers)
