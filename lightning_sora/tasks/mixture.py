"""TaskMixture: which task each clip of a batch trains, by weight."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.facts import VAEFacts
from lightning_sora.randomness import generator, uniform_per_clip
from lightning_sora.spacetime import TokenLayout
from lightning_sora.specs import canonical
from lightning_sora.tasks.base import TASKS

ALONE = "text_to_video"


@dataclass(frozen=True)
class Drawn:
    """What a batch trains.

    Attributes:
        names: the task of each clip.
        layout: of what the tasks take of the clips.
        strength: of each token; None where all are made.
    """

    names: tuple[str, ...]
    layout: TokenLayout
    strength: Float[Tensor, "batch tokens"] | None

    def rows(self, rows: Float[Tensor, "batch tokens latent_dim"], of: TokenLayout) -> Float[Tensor, "b t latent_dim"]:
        """What the tasks take of the rows of whole clips: the first of each."""
        if self.layout == of:
            return rows
        parts = zip(of.split(rows), self.layout.lengths, strict=True)
        return self.layout.join([clip[:length] for clip, length in parts])


class TaskMixture:
    """Draws a task for each clip by weight, and what is given of it.

    Args:
        weights: spec of a task -> share, in any unit.

    Raises:
        SoraError: no task, an unknown one, or a share that is not positive.

    Example:
        >>> import lightning_sora as ls
        >>> tasks = ls.TaskMixture({"text_to_video": 3, "image_to_video": 1})
        >>> layout = ls.TokenLayout.uniform(ls.TokenGrid(3, 1, 1), 2)
        >>> tasks.draw(layout, 0, [("a", 0), ("b", 0)]).names
        ('text_to_video', 'text_to_video')
    """

    def __init__(self, weights: Mapping[str, float]) -> None:
        if not weights or any(
            not isinstance(w, int | float) or isinstance(w, bool) or w <= 0 for w in weights.values()
        ):
            raise SoraError(
                f"tasks={dict(weights)} must give a positive share to each task, such as {{text_to_video: 0.5, "
                "image_to_video: 0.5}; leave out what is not to be trained"
            )
        self.tasks = {canonical(spec): TASKS.create(spec) for spec in weights}
        shares = torch.tensor([float(weight) for weight in weights.values()], dtype=torch.float64)
        self.bounds = list(itertools.accumulate((shares / shares.sum()).tolist()))

    @property
    def alone(self) -> bool:
        """Whether clips are made from text and nothing else."""
        return list(self.tasks) == [ALONE]

    def check_vae(self, facts: VAEFacts) -> None:
        """Refuses tasks that cannot be trained on the latents of a VAE.

        Raises:
            SoraError: what one rests on does not hold.
        """
        for spec, task in self.tasks.items():
            if otherwise := facts.otherwise(*task.rests_on):
                raise SoraError(
                    f"the task {spec} cannot be trained on the latents of this VAE: {otherwise}; leave it out of "
                    f"tasks, or take a VAE of {' and '.join(task.rests_on)}"
                )

    def draw(self, layout: TokenLayout, seed: int, keys: Sequence[tuple[str, int]]) -> Drawn:
        """The tasks of the clips of a batch: of each a function of the seed and its key alone."""
        specs = list(self.tasks)
        if self.alone:
            return Drawn((ALONE,) * layout.clips, layout, None)
        uniform = uniform_per_clip(seed, "task", keys).tolist()
        names = tuple(specs[min(sum(u >= bound for bound in self.bounds), len(specs) - 1)] for u in uniform)
        grids, strengths = [], []
        for name, grid, key in zip(names, layout.grids, keys, strict=True):
            task = self.tasks[name]
            grids.append(task.grid(grid))
            strengths.append(task.strengths(grids[-1], generator(seed, "given", *key)).flatten())
        packed = layout.packed or len(set(grids)) > 1
        part = TokenLayout.pack(grids) if packed else TokenLayout(tuple(grids))
        made = all(bool((strength == 1).all()) for strength in strengths)
        return Drawn(names, part, None if made else part.join(strengths))
