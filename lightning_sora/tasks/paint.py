"""Within frames: parts that are made anew, a wider view, and a video changed by a prompt."""

from __future__ import annotations

import torch

from lightning_sora.errors import SoraError
from lightning_sora.models.given import Given
from lightning_sora.spacetime import PatchSize, TokenGrid, VideoSize
from lightning_sora.tasks.base import Clip, Inputs, Strengths, Task, anew, between, register_task


def _span(length: int, draw: torch.Generator) -> tuple[int, int]:
    """A stretch of an axis, of at least one position."""
    start = between(0, length - 1, draw)
    return start, between(start + 1, length, draw)


def _of_size(video: Clip, size: VideoSize) -> Clip:
    if len(video) != size.frames:
        raise SoraError(
            f"the video has {len(video)} frames and the clip {size.frames}; ask for as many, or give a longer one"
        )
    return video


@register_task("inpaint")
class Inpaint(Task):
    """A video of which the white of a mask is made anew. It is trained on boxes in space and time."""

    needs = ("video", "mask")

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        strengths = torch.zeros(tuple(grid))
        t, y, x = (slice(*_span(length, draw)) for length in grid)
        strengths[t if between(0, 1, draw) else slice(None), y, x] = 1.0
        return strengths

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        video, mask = _of_size(inputs["video"], size), inputs["mask"]
        if len(mask) not in (1, len(video)):
            raise SoraError(f"the mask has {len(mask)} frames and the video {len(video)}; give as many, or one")
        white = mask.float().mean(dim=-1) >= 128
        if not bool(white.any()):
            raise SoraError("the mask is black everywhere, so that nothing is to be made; make white what is")
        return Given(video, white.float().expand(*size))


@register_task("outpaint")
class Outpaint(Task):
    """A wider view: a clip of the asked size, in the middle of which a smaller video is shown.

    The video is given on a canvas of the size, with a mask that is white around it.
    """

    needs = ("video", "mask")

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        strengths = anew(grid)
        if grid.height * grid.width > 1:
            y, x = (slice(*_span(length, draw)) for length in (grid.height, grid.width))
            inside = strengths[:, y, x]
            if inside.numel() < strengths.numel():
                inside.zero_()
        return strengths

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        return Inpaint().given(size, patch, inputs)


@register_task("edit")
class Edit(Task):
    """A video changed by a prompt: noised to a level and denoised from there (SDEdit, Meng et al. 2022,
    arXiv:2108.01073)."""

    needs = ("video",)
    takes = ("strength", "mask")
    trained = False

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        return anew(grid)

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        video, strength = _of_size(inputs["video"], size), inputs.get("strength", 0.6)
        where = torch.ones(size)
        if "mask" in inputs:
            where = Inpaint().given(size, patch, inputs).strength
        return Given(video, strength * where)
