"""Signals that end a command: a training between two steps, so that what is kept can be gone on from."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.exceptions import SIGTERMException

log = logging.getLogger(__name__)


class StopBetweenSteps(pl.Callback):
    """The first Ctrl-C lets the step that runs end; the second stops at once.

    The first is passed on as SIGTERM, which lightning acts on at the next safe point only. It does so neither while
    clips are listed, when a run is recorded already, nor in predictions; here they end by it as well.

    Attributes:
        requested: whether Ctrl-C was pressed during training.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        main = threading.current_thread() is threading.main_thread()
        if main and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
            signal.signal(signal.SIGTERM, self._terminate)

    def _terminate(self, number: int, frame: Any) -> None:
        if signal.getsignal(number) == self._terminate:  # else lightning listens, and calls this as well
            raise SIGTERMException

    def on_predict_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if trainer.received_sigterm:  # what was made of the batches before is written
            raise SIGTERMException

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._stop)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._restore()

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        self._restore()

    def _stop(self, number: int, frame: Any) -> None:
        self.requested = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log.warning("stopping after this step; press Ctrl-C again to stop at once, without a checkpoint")
        os.kill(os.getpid(), signal.SIGTERM)

    def _restore(self) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
