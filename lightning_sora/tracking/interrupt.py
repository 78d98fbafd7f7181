"""Ctrl-C that stops a training between two steps, so that what is kept can be gone on from."""

from __future__ import annotations

import logging
import os
import signal
import threading
from typing import Any

import lightning.pytorch as pl

log = logging.getLogger(__name__)


class StopBetweenSteps(pl.Callback):
    """The first Ctrl-C lets the step that runs end; the second stops at once.

    The first is passed on as SIGTERM, which lightning acts on at the next safe point only.

    Attributes:
        requested: whether Ctrl-C was pressed during training.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None

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
