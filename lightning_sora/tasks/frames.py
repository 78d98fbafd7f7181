"""From frames: an image that is brought to life, a first and a last one, and frames between those of a clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lightning_sora.errors import SoraError
from lightning_sora.models.given import Given
from lightning_sora.spacetime import PatchSize, TokenGrid, VideoSize
from lightning_sora.tasks.base import Clip, Inputs, SamplingModel, Strengths, Task, anew, between, blank, register_task


@register_task("image_to_video")
class ImageToVideo(Task):
    """A clip that begins with an image."""

    needs = ("image",)
    rests_on = ("first_frame_alone",)

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        strengths = anew(grid)
        if grid.frames > 1:
            strengths[0] = 0.0
        return strengths

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        video, strength = blank(size)
        video[0], strength[0] = inputs["image"][0], 0.0
        return Given(video, strength)


@register_task("first_and_last")
class FirstAndLast(Task):
    """A clip that begins with one image and ends with another.

    A token covers several frames where the VAE compresses time: the last image then stands for as many frames as one
    token has.
    """

    needs = ("first", "last")
    rests_on = ("first_frame_alone",)

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        strengths = anew(grid)
        if grid.frames > 2:
            strengths[0] = strengths[-1] = 0.0
        return strengths

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        if size.frames < 2 + patch.frames:
            raise SoraError(
                f"between a first and a last image no frame of {size.frames} is left, with {patch.frames} to a token; "
                f"ask for frames={1 + 2 * patch.frames} at least"
            )
        video, strength = blank(size)
        video[0], strength[0] = inputs["first"][0], 0.0
        video[-patch.frames :], strength[-patch.frames :] = inputs["last"][0], 0.0
        return Given(video, strength)


@register_task("interpolate")
class Interpolate(Task):
    """The same clip with frames between its own: slow motion, or a higher rate.

    Where a token covers one frame, the clip's own frames are kept. Where it covers several, tokens that hold one of
    them are filled by a blend of the two nearest and taken up at a noise level, so that the rest of the token can move.

    Args:
        hold: that noise level.
    """

    needs = ("video", "times")

    def __init__(self, hold: float = 0.5) -> None:
        if not 0 <= hold <= 1:
            raise SoraError(f"hold={hold} must lie in [0, 1]")
        self.hold = hold

    def strengths(self, grid: TokenGrid, draw: torch.Generator) -> Strengths:
        strengths = anew(grid)
        if grid.frames > 2:
            step = between(2, min(4, grid.frames - 1), draw)
            strengths[::step] = self.hold * between(0, 1, draw)
        return strengths

    def given(self, size: VideoSize, patch: PatchSize, inputs: Inputs) -> Given:
        """Of a window that begins with the video's first frame."""
        shown, times = inputs["video"].float(), inputs["times"]
        video, strength = blank(size)
        at = (torch.arange(size.frames) / times).clamp(max=len(shown) - 1)
        low = at.floor().long().clamp(max=max(len(shown) - 2, 0))
        part = (at - low)[:, None, None, None]
        blended = (1 - part) * shown[low] + part * shown[(low + 1).clamp(max=len(shown) - 1)]
        video[:] = blended.round().to(torch.uint8)
        own = set(range(0, min(size.frames, (len(shown) - 1) * times + 1), times))
        for begin, end in _tokens(size.frames, patch.frames):
            inside = own & set(range(begin, end))
            if inside:
                strength[begin:end] = 0.0 if len(inside) == end - begin else self.hold
        return Given(video, strength)

    def sample(
        self, model: SamplingModel, prompts: Sequence[str], size: VideoSize, inputs: Inputs, **options: Any
    ) -> list[Clip]:
        shown, times = inputs["video"], inputs["times"]
        if len(shown) < 2:
            raise SoraError("there is nothing between the frames of a video of one; give at least two")
        keys = options.pop("keys")
        step = (size.frames - 1) // times  # frames of the video that a window of the model goes through
        if step < 1:
            raise SoraError(
                f"times={times} puts more frames between two than a clip of {size.frames} has; ask for less"
            )
        parts: list[list[Clip]] = [[] for _ in prompts]
        for start in range(0, len(shown) - 1, step):
            part = {**inputs, "video": shown[start : start + step + 1]}
            given = self.given(size, model.patch, part)
            made = model.sample(prompts, *size, given=given, keys=[(*key, start) for key in keys], **options)
            length = (len(part["video"]) - 1) * times
            for clips, clip in zip(parts, made, strict=True):
                clips.append(clip[:length] if start + step < len(shown) - 1 else clip[: length + 1])
        return [torch.cat(clips) for clips in parts]


def _tokens(frames: int, step: int) -> list[tuple[int, int]]:
    """The frames of each token in time: the first alone."""
    return [(0, 1), *((begin, begin + step) for begin in range(1, frames, step))]
