"""A progress bar over the whole training, with the time left."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.pytorch.callbacks import TQDMProgressBar

from lightning_sora.lit.module import LitModule


class Progress(TQDMProgressBar):
    """Counts optimizer steps up to the end of the fit; lightning's own bars begin anew with each epoch.

    Args:
        refresh_rate: steps between updates; None means 5 on a terminal, 20 in a log file.

    Attributes:
        listeners: of every bar of this class. Called after each step of a training and each batch of a test with
            the share that is done, for who tells the progress of a job that this is a part of.
    """

    listeners: ClassVar[list[Callable[[float], None]]] = []

    def __init__(self, refresh_rate: int | None = None) -> None:
        super().__init__(refresh_rate or (5 if sys.stderr.isatty() else 20))

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        super().on_train_start()
        bar = self.train_progress_bar
        bar.set_description("fit")
        bar.total = pl_module.planned_steps if isinstance(pl_module, LitModule) else trainer.max_steps
        bar.initial = bar.n = trainer.global_step  # a resumed training is timed from where it resumes

    def on_train_epoch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        """Epochs do not restart the bar."""

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        bar, step = self.train_progress_bar, trainer.global_step
        self._tell(step / bar.total)
        if step > bar.n and self._should_update(step, bar.total):
            bar.n = step
            bar.set_postfix(self.get_metrics(trainer, pl_module))

    def on_test_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        super().on_test_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        counts: Any = trainer.num_test_batches
        self._tell((sum(counts[:dataloader_idx]) + batch_idx + 1) / sum(counts))

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        for bar in (self._train_progress_bar, self._val_progress_bar, self._test_progress_bar):
            if bar is not None:
                bar.close()  # else Python does it as it ends, when nothing can be written any more

    def _tell(self, share: float) -> None:
        for listener in self.listeners:
            listener(share)

    def get_metrics(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> dict[str, Any]:
        metrics = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return {name.removeprefix("speed/"): value for name, value in metrics.items()}
