"""Windows: the part of a clip that is used, when it is longer or larger than asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import UInt8
from torch import Tensor

from lightning_sora.data import decode
from lightning_sora.data.places import DecodeError, MediaPath
from lightning_sora.spacetime import Crop, VideoSize

if TYPE_CHECKING:
    from lightning_sora.data.sources.base import ClipInfo


def covering(height: int, width: int, wanted: VideoSize) -> tuple[int, int]:
    """The smallest (height, width) of a picture's own aspect that covers the wanted one."""
    cover = max(wanted.height / height, wanted.width / width)
    return max(wanted.height, round(height * cover)), max(wanted.width, round(width * cover))


def cut(
    video: UInt8[Tensor, "frames height width 3"], size: VideoSize, generator: torch.Generator | None
) -> UInt8[Tensor, "frames wanted_height wanted_width 3"]:
    """Cuts pictures to a size, at a drawn place; in the middle without a generator."""
    spare = video.shape[1] - size.height, video.shape[2] - size.width
    top, left = (margin // 2 if generator is None else draw(margin, generator) for margin in spare)
    return video[:, top : top + size.height, left : left + size.width].contiguous()


@dataclass(frozen=True)
class Region:
    """The part of a file's picture that is the clip, in pixels.

    Attributes:
        left, top: where it begins.
        height, width: of the whole picture.
    """

    left: int
    top: int
    height: int
    width: int


def read_window(
    place: MediaPath,
    info: ClipInfo,
    crop: Crop,
    *,
    generator: torch.Generator,
    centred: bool,
    start_seconds: float = 0.0,
    region: Region | None = None,
    colours: str = "exact",
) -> UInt8[Tensor, "frames height width 3"]:
    """Reads a window of a file, begun at a drawn frame.

    Args:
        info: what the clip is; it begins at ``start_seconds`` of the file, its height and width are those of
            the ``region``.
        centred: cut pictures in the middle, rather than at a drawn place.
        colours: "exact" or "fast", as of :func:`~lightning_sora.data.decode.read_clip`.

    Raises:
        DecodeError: it does not fit, or cannot be read.
    """
    if reason := misfit(info, crop):
        raise DecodeError(f"{place}: {reason}; ask for fewer frames or a higher rate")
    rate, frames = crop.fps or info.fps, crop.size.frames
    start = start_seconds + draw(int(info.frames - 1 - _span(info, crop) + 1e-6), generator) / info.fps
    size = covering(info.height, info.width, crop.size)
    if region is None:
        video = decode.read_clip(place, start, frames, rate, size=size, colours=colours)
    else:
        # Scaled whole, then cut: off by less than a pixel of the result.
        scale = size[0] / info.height, size[1] / info.width
        whole = max(size[0], round(region.height * scale[0])), max(size[1], round(region.width * scale[1]))
        video = decode.read_clip(place, start, frames, rate, size=whole, colours=colours)
        top = min(round(region.top * scale[0]), whole[0] - size[0])
        left = min(round(region.left * scale[1]), whole[1] - size[1])
        video = video[:, top : top + size[0], left : left + size[1]]
    return cut(video, crop.size, None if centred else generator)


def misfit(info: ClipInfo, crop: Crop) -> str | None:
    """Why a window's frames do not fit into a clip, in words, or None."""
    if _span(info, crop) <= info.frames - 1 + 1e-6:
        return None
    asked = f"{crop.size.frames} frames at {crop.fps or info.fps:g} per second"
    return f"{asked} do not fit into its {info.frames} at {info.fps:g}"


def _span(info: ClipInfo, crop: Crop) -> float:
    """From the first to the last frame of a window, in units of the clip's own frames."""
    return (crop.size.frames - 1) / (crop.fps or info.fps) * info.fps


def draw(largest: int, generator: torch.Generator) -> int:
    """A whole number from 0 to ``largest``."""
    drawn: Tensor = torch.randint(largest + 1, (), generator=generator)
    return int(drawn)
