"""Checkpoints between two steps of the optimizer: gradients that wait are not kept, but made again."""

from __future__ import annotations

import copy
from typing import Any

import lightning.pytorch as pl


def waits(trainer: pl.Trainer) -> bool:
    """Whether the present batch makes its step together with later ones."""
    return bool(trainer.fit_loop._should_accumulate())


class LastStep:
    """What lightning had counted when the optimizer last stepped.

    Weights, averages and rates of a checkpoint are those of the last step. Its counts must be too, or the step that
    follows would lack the batches before the checkpoint.
    """

    def __init__(self) -> None:
        self._counts: dict[str, Any] | None = None

    def begin(self, counts: dict[str, Any]) -> None:
        """Takes the counts that a fit begins with."""
        self._counts = copy.deepcopy(counts)

    def note(self, trainer: pl.Trainer) -> None:
        """Called at the end of each batch and validation."""
        if trainer.accumulate_grad_batches > 1 and not waits(trainer):
            self.begin(trainer.fit_loop.state_dict())

    def rewind(self, trainer: pl.Trainer, checkpoint: dict[str, Any]) -> None:
        """Makes a checkpoint between two steps one of the last step."""
        if self._counts is None or not waits(trainer):
            return
        if self._counts["epoch_loop.batch_progress"]["total"]["ready"] == 0:
            del checkpoint["loops"]  # lightning would count a resumption from nothing as a step
        else:
            checkpoint["loops"]["fit_loop"] = self._counts
