"""Means over all clips of an evaluation, however they are dealt to batches and ranks."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, TypeVar

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

log = logging.getLogger(__name__)

T = TypeVar("T")
Sums = Mapping[str, tuple[float, int]]


def of_all_ranks(trainer: pl.Trainer, own: T) -> list[T]:
    """What each rank has, in order of ranks, on every rank; to be called by all."""
    if trainer.world_size == 1:
        return [own]
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, own)
    return everyone


class EvaluationMeans:
    """Sums and counts by name in float64, over all ranks, which may have met other names and other numbers of clips.

    Lightning averages the means of batches, over ranks by their numbers of batches: clips of short batches weigh more.

    Example:
        >>> means = EvaluationMeans()
        >>> means.add("val/loss", [1.0, 2.0])
        >>> means.add("val/loss", [6.0])
        >>> means.over([means.sums])
        {'val/loss': 3.0}
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[float, int]] = {}
        self.divisions: dict[str, str] = {}

    def add(self, name: str, values: Sequence[float] | Tensor, division: str = "") -> None:
        """Adds one value per clip.

        Args:
            name: that the mean is logged under.
            values: of clips.
            division: what this is one part of, such as "sizes": of a single part it would be the whole under another
                name, and is not logged.
        """
        if division:
            self.divisions[name] = division
        numbers = torch.as_tensor(values).detach().double().flatten()
        total, count = self.sums.get(name, (0.0, 0))
        self.sums[name] = total + float(numbers.sum()), count + len(numbers)

    def log(self, module: pl.LightningModule, prog_bar: Collection[str] = ()) -> dict[str, float]:
        """Logs the mean of each name on every rank, forgets all, and returns what it logged."""
        everyone = of_all_ranks(module.trainer, (self.sums, self.divisions))
        found = self.over([sums for sums, _ in everyone])
        divisions = {name: division for _, own in everyone for name, division in own.items()}
        for name, division in divisions.items():
            if list(divisions.values()).count(division) == 1:
                found.pop(name)
        for name, mean in found.items():
            module.log(name, mean, prog_bar=name in prog_bar)
        if spoilt := [name for name, mean in found.items() if not math.isfinite(mean)]:
            rank_zero_only(log.warning)("not finite at step %d: %s", module.trainer.global_step, ", ".join(spoilt))
        self.sums, self.divisions = {}, {}
        return found

    @staticmethod
    def over(everyone: Sequence[Sums]) -> dict[str, float]:
        """The means of several ranks' sums, names in order."""
        found = {}
        for name in sorted({name for one in everyone for name in one}):
            totals, counts = zip(*(one[name] for one in everyone if name in one), strict=True)
            found[name] = sum(totals) / sum(counts)
        return found
