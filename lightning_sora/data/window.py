"""Windows: the part of a clip that is used, when it is longer or larger than asked."""

from __future__ import annotations

import torch
from jaxtyping import UInt8
from torch import Tensor


def covering(height: int, width: int, wanted_height: int, wanted_width: int) -> tuple[int, int]:
    """The smallest (height, width) of a picture's own aspect that covers the wanted one."""
    cover = max(wanted_height / height, wanted_width / width)
    return max(wanted_height, round(height * cover)), max(wanted_width, round(width * cover))


def cut(
    video: UInt8[Tensor, "frames height width 3"], height: int, width: int, generator: torch.Generator | None
) -> UInt8[Tensor, "frames wanted_height wanted_width 3"]:
    """Cuts to a size, at a drawn place; in the middle without a generator."""
    spare = video.shape[1] - height, video.shape[2] - width
    top, left = (margin // 2 if generator is None else draw(margin, generator) for margin in spare)
    return video[:, top : top + height, left : left + width].contiguous()


def draw(largest: int, generator: torch.Generator) -> int:
    """A whole number from 0 to ``largest``."""
    drawn: Tensor = torch.randint(largest + 1, (), generator=generator)
    return int(drawn)
