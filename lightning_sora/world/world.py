"""A world: an endless, indexable collection of clips whose every fact is known."""

from __future__ import annotations

import math

from jaxtyping import UInt8
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.world.captions import caption
from lightning_sora.world.config import WorldConfig, world_config
from lightning_sora.world.draw import draw_facts
from lightning_sora.world.facts import Facts
from lightning_sora.world.render import Rendering, render
from lightning_sora.world.trajectory import Trajectory, trajectory


class World:
    """Procedural clips; clip ``index`` is a pure function of (config, seed, split, index).

    Args:
        config: a level ("tiny", "duo", "simple", "medium", "hard") or a configuration.
        seed: another seed, another collection.
        split: "train" never shows the held-out (colour, shape) pairs, "heldout" shows only those.

    Raises:
        SoraError: unknown level or split.

    Example:
        >>> import lightning_sora as ls
        >>> world = ls.World("tiny", seed=0)
        >>> facts = world.facts(0)
        >>> world.render(facts, frames=17, height=32, width=32, fps=8).shape
        torch.Size([17, 32, 32, 3])
        >>> facts.objects[0].color in world.caption(facts)
        True
    """

    def __init__(self, config: WorldConfig | str = "tiny", seed: int = 0, split: str = "all") -> None:
        self.config = world_config(config)
        self.config.split_pairs(split)
        self.seed = seed
        self.split = split

    def facts(self, index: int) -> Facts:
        """The facts of one clip."""
        return draw_facts(self.config, self.seed, self.split, index)

    def caption(self, facts: Facts, level: str = "short", key: int = 0, language: str = "en") -> str:
        """Words for the facts.

        Args:
            level: "tags", "short", "dense", "alt" or "natural" (as people write prompts).
            key: 0 is the plainest wording, others vary it.
            language: "en"; of "short" captions also "es" (Spanish), "zh" (Chinese) and "ar" (Arabic).

        Raises:
            SoraError: unknown level or language, or a language that does not have the level.
        """
        return caption(facts, level, key, language)

    def render(
        self, facts: Facts, frames: int, height: int, width: int, fps: float
    ) -> UInt8[Tensor, "frames height width 3"]:
        """The clip's pixels, from time 0 on.

        Motion is a function of time in seconds, and the angle of view spans the frame's shorter
        side: another rate or size shows the same event.

        Args:
            frames: 1 for a still.
            fps: frames per second.

        Raises:
            SoraError: a size or rate that is not positive.
        """
        _check(frames, height, width, fps)
        return render(facts, frames, height, width, fps).video

    def render_all(self, facts: Facts, frames: int, height: int, width: int, fps: float) -> Rendering:
        """The clip's pixels with its depth and object maps; arguments and errors as in ``render``."""
        _check(frames, height, width, fps)
        return render(facts, frames, height, width, fps, depth=True)

    def trajectory(self, facts: Facts, frames: int, fps: float, height: int, width: int) -> Trajectory:
        """Per-frame places of the objects in space and image, and their visibility; errors as in ``render``."""
        _check(frames, height, width, fps)
        return trajectory(facts, frames, fps, height, width)


def _check(frames: int, height: int, width: int, fps: float) -> None:
    if min(frames, height, width) < 1 or not (fps > 0 and math.isfinite(fps)):
        raise SoraError(
            f"cannot render {frames} frames of {height}x{width} at {fps} frames per second; all must be positive"
        )
