"""How often the evaluator reads a fact right."""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor
from torchmetrics import Metric

from lightning_sora.testbench.evaluator.network import Perception
from lightning_sora.testbench.evaluator.vocabulary import OF_OBJECTS, Answers

NEAR = 0.06  # of the stage; pairs of objects nearer in depth than this are not ordered
READ = ("color", "count", *OF_OBJECTS, "camera", "depth_order")


class ReadingAccuracy(Metric):
    """Accuracy per fact over named groups of clips.

    ``color`` is the share of clips whose set of colours is found exactly, ``count`` that of clips with as many
    objects as are there; ``shape``, ``size`` and ``motion`` are of objects, and an object that is not found is read
    wrong; ``depth_order`` is of pairs of objects.

    Args:
        groups: names that :meth:`update` is given.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    right: Tensor
    counted: Tensor

    def __init__(self, groups: tuple[str, ...]) -> None:
        super().__init__()
        self.groups = groups
        for name in ("right", "counted"):
            zeros = torch.zeros((len(groups), len(READ)), dtype=torch.float64)
            self.add_state(name, default=zeros, dist_reduce_fx="sum")

    def update(self, seen: Perception, true: Answers, groups: list[str]) -> None:
        """Adds clips, whose objects were read at the true slots."""
        clip, color = true.slots.unbind(1)
        found = seen.present.cpu() > 0
        per_object = {name: seen.objects[name].cpu().argmax(1) == true.labels[name] for name in OF_OBJECTS}
        hits: dict[str, tuple[Bool[Tensor, " items"], Tensor]] = {
            "color": ((found == true.present).all(1), torch.arange(len(groups))),
            "count": (found.sum(1) == true.present.sum(1), torch.arange(len(groups))),
            "camera": (seen.camera.cpu().argmax(1) == true.labels["camera"], torch.arange(len(groups))),
            **{name: (value & found[clip, color], clip) for name, value in per_object.items()},
            "depth_order": self._orders(seen, true),
        }
        group = torch.tensor([self.groups.index(name) for name in groups])
        for number, name in enumerate(READ):
            right, of_clip = hits[name]
            self.right[:, number].index_add_(0, group[of_clip].to(self.device), right.double().to(self.device))
            self.counted[:, number].index_add_(
                0, group[of_clip].to(self.device), torch.ones(len(right), device=self.device).double()
            )

    @staticmethod
    def _orders(seen: Perception, true: Answers) -> tuple[Bool[Tensor, " pairs"], Tensor]:
        clip = true.slots[:, 0]
        mean, read = true.depths.mean(1), seen.depths.cpu().mean(1)
        a, b = torch.triu_indices(len(clip), len(clip), 1)
        apart = (mean[a].exp() - mean[b].exp()).abs() > NEAR
        kept = (clip[a] == clip[b]) & apart
        a, b = a[kept], b[kept]
        return (read[a] < read[b]) == (mean[a] < mean[b]), clip[a]

    def compute(self) -> dict[str, Tensor]:
        """In [0, 1]: ``GROUP/FACT``, of what was counted."""
        return {
            f"{group}/{name}": self.right[i, j] / self.counted[i, j]
            for i, group in enumerate(self.groups)
            for j, name in enumerate(READ)
            if self.counted[i, j] > 0
        }
