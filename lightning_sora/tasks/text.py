"""From text alone: a video, or an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from lightning_sora.spacetime import TokenGrid, VideoSize
from lightning_sora.tasks.base import Clip, Inputs, SamplingModel, Strengths, Task, anew, register_task


@register_task("text_to_video")
class TextToVideo(Task):
    """A clip of a prompt."""

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        return anew(grid)


@register_task("text_to_image")
class TextToImage(TextToVideo):
    """A still of a prompt: a clip of one frame. It is trained on the first frame of clips."""

    rests_on = ("first_frame_alone",)

    def grid(self, grid: TokenGrid) -> TokenGrid:
        return replace(grid, frames=1)

    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        return super().sample(model, prompts, size._replace(frames=1), inputs, **options)
