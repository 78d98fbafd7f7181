"""Radial attention: the further apart in time, the narrower in space."""

from __future__ import annotations

import math
from typing import no_type_check

import torch
from jaxtyping import Bool
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import register_attention
from lightning_sora.nn.attention.masked import MaskedBlock
from lightning_sora.nn.attention.tiling import Coordinates
from lightning_sora.spacetime import TokenGrid


@register_attention("radial")
class RadialAttention(MaskedBlock):
    """Attention as its energy decays (Li et al. 2025, arXiv:2506.19852, section 4.2): of frames that are ``2^r`` to
    ``2^(r+1) - 1`` apart, tokens ``k`` and ``l`` in reading order see each other where ``|k - l| + 1 <= s / 2^r``, with
    ``s`` tokens in a frame; the same and the next frame are seen whole. Where that leaves less than a token, a token
    sees its own place in every ``ceil(2^r / s)``-th frame. The released code also shows the first frame to all (an
    attention sink) and rounds bands to blocks of 128 tokens; this is the mask of the paper.

    Args:
        width: multiplies the bands, so that 1 is the paper's.
    """

    def __init__(self, dim: int, num_heads: int, *, layer: int, depth: int, width: float = 1.0) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        if not 0 < width < math.inf:
            raise SoraError(f"radial width={width} must be positive")
        self.width = float(width)

    @property
    def plan_name(self) -> tuple[object, ...]:
        return ("radial", self.width)

    @no_type_check  # FlexAttention compiles it
    def visible(self, queries: Coordinates, keys: Coordinates, grid: TokenGrid) -> Bool[Tensor, "*_"]:
        apart = (queries.t - keys.t).abs()
        place = (queries.y - keys.y) * grid.width + (queries.x - keys.x)
        frame = grid.height * grid.width
        band = self.width * frame * 0.5 ** torch.floor(torch.log2(apart.clamp(min=1).double()))
        # A band of less than one token: its own place, in one of so many frames.
        thin = apart % torch.ceil(1 / band).long() == 0
        width = torch.where(band < 1, thin, band.floor()).masked_fill(apart == 0, frame)
        return place.abs() < width.to(place.dtype)
