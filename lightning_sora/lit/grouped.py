"""Means per group: of each clip size, of each source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch


class GroupedMeans:
    """Sums and counts by name, over all ranks, which may have met different groups."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, name: str, value: float) -> None:
        total, count = self._sums.get(name, (0.0, 0))
        self._sums[name] = total + value, count + 1

    def log(self, module: pl.LightningModule, prefix: str) -> None:
        """Logs the mean of each group as ``prefix_name``, and forgets all."""
        everyone: list[Any] = [self._sums]
        if module.trainer.world_size > 1:
            everyone = [None] * module.trainer.world_size
            torch.distributed.all_gather_object(everyone, self._sums)
        for name, mean in _means(everyone).items():
            module.log(f"{prefix}_{name}", mean, rank_zero_only=True)
        self._sums.clear()


def _means(everyone: list[Mapping[str, tuple[float, int]]]) -> dict[str, float]:
    found = {}
    for name in sorted({name for one in everyone for name in one}):
        totals, counts = zip(*(one[name] for one in everyone if name in one), strict=True)
        found[name] = sum(totals) / sum(counts)
    return found
