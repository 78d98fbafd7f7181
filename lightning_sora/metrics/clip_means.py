"""Scores of single clips, averaged over all of them, on any number of processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric

from lightning_sora.errors import SoraError


class ClipMeans(Metric):
    """The mean over clips, and its standard error, of scores that each clip has by itself.

    Clips weigh the same, whatever their length. The states are sums in float64, so the result does not depend on
    how clips are spread over processes, some of which may have none.

    Args:
        names: of the scores.

    Raises:
        SoraError: no names, or one twice.
    """

    is_differentiable = False
    full_state_update = False
    total: Tensor
    squares: Tensor
    count: Tensor

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self.names = tuple(names)
        if not self.names or len(set(self.names)) < len(self.names):
            raise SoraError(f"the names of scores {self.names} must be at least one and each another; rename them")
        for state in ("total", "squares", "count"):
            self.add_state(state, torch.zeros(len(self.names), dtype=torch.float64), dist_reduce_fx="sum")

    # Typed so that subclasses may take clips.
    def update(self, *scores: Any, **options: Any) -> None:
        """Adds clips; see :meth:`add`."""
        self.add(*scores, **options)

    def add(self, scores: Mapping[str, Float[Tensor, " clips"]]) -> None:
        """Adds clips whose scores are known; a score that is left out has no such clips.

        Raises:
            SoraError: an unknown name, or a score that is not finite.
        """
        unknown = sorted(set(scores) - set(self.names))
        if unknown:
            raise SoraError(f"unknown scores {unknown}; this metric averages {', '.join(self.names)}")
        for name, values in scores.items():
            if not values.isfinite().all():
                raise SoraError(
                    f"{name} of clips {(~values.isfinite()).nonzero().flatten().tolist()[:8]} of this batch is not "
                    "finite; look at those clips before anything is averaged"
                )
        for name, values in scores.items():
            index, values = self.names.index(name), values.detach().double().to(self.device)
            self.total[index] += values.sum()
            self.squares[index] += values.square().sum()
            self.count[index] += len(values)
        # For torchmetrics, which sees calls of update alone: there is data, and what it computed before is stale.
        self._update_count += 1
        self._computed = None

    def compute(self) -> dict[str, Tensor]:
        """Each score's mean, and as ``<name>_se`` its standard error over clips where there are two or more; a score
        of no clip at all is left out."""
        found = {}
        for name, total, squares, count in zip(self.names, self.total, self.squares, self.count, strict=True):
            if count > 0:
                found[name] = total / count
            if count > 1:
                variance = (squares - total.square() / count).clamp(min=0) / (count - 1)
                found[f"{name}_se"] = (variance / count).sqrt()
        return found
