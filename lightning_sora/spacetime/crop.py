"""Windows of spacetime in pixels: how large a video is, and what part of a clip is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class VideoSize(NamedTuple):
    """Frames, height and width of a video, in pixels; in words "17x32x48".

    Example:
        >>> import lightning_sora as ls
        >>> size = ls.VideoSize(17, 32, 48)
        >>> str(size), ls.TokenGrid.of(*size, ls.PatchSize(4, 8, 8)).size(ls.PatchSize(4, 8, 8)) == size
        ('17x32x48', True)
    """

    frames: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.frames}x{self.height}x{self.width}"


@dataclass(frozen=True)
class Crop:
    """The window of a clip that is asked of a source: so many frames at a rate, each cut to a height and width.

    Attributes:
        size: of the window, in pixels.
        fps: frames per second to take, by timestamps; None for the clip's own.

    Example:
        >>> import torch, lightning_sora as ls
        >>> source = ls.SOURCES.create("world(level='tiny')", root=None, split="val", seed=0)
        >>> source.load(0, ls.Crop(ls.VideoSize(9, 32, 32), fps=8.0), generator=torch.Generator()).video.shape
        torch.Size([9, 32, 32, 3])
    """

    size: VideoSize
    fps: float | None = None
