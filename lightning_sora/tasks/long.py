"""Longer than a model's clips: windows that overlap, and frame after frame."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_sora.spacetime import TokenGrid, VideoSize
from lightning_sora.tasks.base import Clip, Inputs, SamplingModel, Strengths, Task, between, register_task
from lightning_sora.tasks.extend import ExtendForward, continued


@register_task("windows")
class Windows(Task):
    """A video of any length: a clip of a prompt, and windows that each continue the one before.

    Args:
        context: the share of a window that the model sees of the one before.
    """

    needs = ("extra",)
    rests_on = ExtendForward.rests_on

    def __init__(self, context: float = 0.5) -> None:
        self.forward = ExtendForward(context)

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        return self.forward.strengths(grid, draw)

    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        keys = options.pop("keys")
        first = model.sample(prompts, *size, keys=[(*key, "first") for key in keys], **options)
        return self.forward.extended(model, prompts, first, size.frames + inputs["extra"], size, keys=keys, **options)


@register_task("rollout")
class Rollout(Task):
    """A video of any length, each frame after those before it (diffusion forcing, Chen et al. 2024, arXiv:2407.01392).

    In sampling the first frame is made, then token after token in time from all that the window holds before it. In
    training the frames before are seen as they are, or each at a noise level of its own.
    """

    takes = ("extra",)
    rests_on = ExtendForward.rests_on

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        before = between(0, grid.frames - 1, draw)
        of_frames = torch.ones(grid.frames)
        of_frames[:before] = torch.rand(before, generator=draw) * between(0, 1, draw)
        return of_frames[:, None, None].expand(tuple(grid)).clone()

    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        keys, step = options.pop("keys"), model.patch.frames
        made = model.sample(prompts, *size._replace(frames=1), keys=[(*key, 0) for key in keys], **options)
        frames = size.frames + inputs.get("extra", 0)
        for length in range(1, frames, step):
            window = size._replace(frames=min(length + step, size.frames))
            given = [continued(window, clip, window.frames - step) for clip in made]
            more = model.sample(prompts, *window, given=given, keys=[(*key, length) for key in keys], **options)
            made = [torch.cat([clip, new[-step:]]) for clip, new in zip(made, more, strict=True)]
        return [clip[:frames] for clip in made]
