"""Metrics that keep something of every clip, on any number of processes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.distributed import gather_all_tensors

from lightning_sora.errors import SoraError
from lightning_sora.metrics.frechet import clip_hash


class ClipListMetric(Metric):
    """Named lists of rows, one per clip: gathered from ranks with any number of clips, also none."""

    is_differentiable = False
    full_state_update = False

    def __init__(self) -> None:
        super().__init__()
        self._empty: dict[str, Tensor] = {}

    def add_list(self, name: str, empty: Tensor) -> None:
        """Adds a list; ``empty`` has no rows, and the shape and type of them."""
        self.add_state(name, default=[], dist_reduce_fx="cat")
        self._empty[name] = empty

    def collected(self, name: str) -> Tensor:
        """All rows of a list."""
        value = getattr(self, name)
        if isinstance(value, Tensor):
            return value
        return torch.cat(value) if value else self._empty[name].to(self.device)

    def hashes(self, ids: Sequence[str]) -> Int[Tensor, " clips"]:
        """What stands for clips in a list: no rank and no order changes it."""
        return torch.tensor([clip_hash(name) for name in ids], dtype=torch.int64, device=self.device)

    def _sync_dist(self, dist_sync_fn: Callable = gather_all_tensors, process_group: Any | None = None) -> None:
        # torchmetrics stands in for a rank without clips with a tensor of the wrong type and shape.
        for name, empty in self._empty.items():
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [empty.to(self.device)])
        super()._sync_dist(dist_sync_fn, process_group)


class Rows(ClipListMetric):
    """Scores of single clips, by hashed ids: no order, batch or number of processes changes what comes of them."""

    def __init__(self, columns: int) -> None:
        super().__init__()
        self.add_list("ids", torch.zeros(0, dtype=torch.int64))
        self.add_list("rows", torch.zeros((0, columns), dtype=torch.float64))

    def update(self, ids: Sequence[str], rows: Tensor) -> None:
        """Adds clips; NaN where a clip has no such score."""
        if len(ids):
            self.ids.append(self.hashes(ids))
            self.rows.append(rows.double().to(self.device))

    def compute(self) -> Tensor:
        """The rows, in the order of the hashes.

        Raises:
            SoraError: clips given twice.
        """
        ids = self.collected("ids")
        twice = len(ids) - len(ids.unique())
        if twice:
            raise SoraError(
                f"{twice} of {len(ids)} clips were given more than once, which biases a mean: a distributed "
                "sampler that pads does this; use one that does not, and ids that tell clips apart"
            )
        return self.collected("rows")[ids.argsort()].cpu()
