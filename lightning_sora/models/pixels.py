"""Display values and what networks take: uint8 0 to 255 [frames height width 3], and [-1, 1] with colours first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

Clip = UInt8[Tensor, "frames height width 3"]


def from_uint8(
    clips: Sequence[Clip], dtype: torch.dtype | str = torch.float32
) -> Float[Tensor, "clips 3 frames height width"]:
    """Stacks clips of one size and brings them to [-1, 1]."""
    assert isinstance(dtype, torch.dtype), "lightning's modules say that theirs may be a name; it never is"
    return (torch.stack(list(clips)).to(dtype) / 127.5 - 1).movedim(-1, 1)


def to_uint8(video: Float[Tensor, "clips 3 frames height width"]) -> list[Clip]:
    """The clips of a batch in [-1, 1], rounded and clamped, on the CPU."""
    pixels = ((video.float().movedim(1, -1) + 1) * 127.5).round().clamp(0, 255)
    return list(pixels.to(torch.uint8).cpu())
