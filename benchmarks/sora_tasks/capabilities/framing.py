"""Other aspect ratios than those trained on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from einops import rearrange

from benchmarks.sora_tasks.capabilities.text import Facts
from benchmarks.sora_tasks.judge import Judge
from benchmarks.sora_tasks.protocol import CAPABILITIES, Case, Clip, Judged, Measure, rolled
from benchmarks.sora_tasks.scene import Scene

COLOURED, LEAST = 60, 6  # of 255; pixels that make an object


@CAPABILITIES.register("framing")
class Framing(Facts):
    """Clips wider and taller than those of training: is the object whole in the frame, and is it the right one?

    Args:
        sizes: (height, width) of each group.
    """

    measures: ClassVar = {"whole": Measure(), **Facts.measures}
    headline = ("whole", "mean")
    control_told = "the next prompt's clip, its middle square cut to this aspect as training on squares would"
    turns = 1

    def __init__(
        self, clips: int = 24, world: str = "simple", sizes: Sequence[Sequence[int]] = ((48, 80), (80, 48))
    ) -> None:
        super().__init__(clips, world)
        self.sizes = sizes

    def cases(self, scene: Scene) -> list[Case]:
        world, found = scene.make(self.world), []
        for height, width in self.sizes:
            size = scene.size._replace(height=height, width=width)
            for f in scene.draw(world, self.clips):
                key = f"{self.world}-{f.index}"
                truth = scene.render(f, world, size)
                group = f"{height}x{width}"
                found.append(Case(key, f, world.config, scene.prompt(f, world), truth, size, group))
        return found

    def judge(self, judge: Judge, cases: Sequence[Case], clips: Sequence[Clip]) -> list[Judged]:
        facts = super().judge(judge, cases, clips)
        return [{"whole": whole(clip), **one} for clip, one in zip(clips, facts, strict=True)]

    def control(self, cases: Sequence[Case], clips: Sequence[Clip], turn: int) -> list[Clip]:
        return [_cut(clip) for clip in rolled(cases, clips, turn)]


def whole(clip: Clip) -> float:
    """The share of frames in which something coloured is there and does not touch the border: all else is grey."""
    pixels = clip.int()
    coloured = pixels.amax(-1) - pixels.amin(-1) > COLOURED
    inside = coloured[:, 1:-1, 1:-1].sum(dim=(1, 2))
    touching = coloured.sum(dim=(1, 2)) - inside
    return float(((inside >= LEAST) & (touching <= 1)).double().mean())


def _cut(clip: Clip) -> Clip:
    """The middle square, scaled to cover the frame and cut."""
    _, height, width, _ = clip.shape
    side, cover = min(height, width), max(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = rearrange(clip[:, top : top + side, left : left + side], "t h w c -> t c h w").float()
    large = torch.nn.functional.interpolate(square, size=(cover, cover), mode="bilinear")
    top, left = (cover - height) // 2, (cover - width) // 2
    cut = large[..., top : top + height, left : left + width].round().clamp(0, 255).byte()
    return rearrange(cut, "t c h w -> t h w c")
