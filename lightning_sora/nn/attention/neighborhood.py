"""Neighbourhood attention: every token sees the box around it."""

from __future__ import annotations

from typing import no_type_check

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_sora.nn.attention.base import register_attention
from lightning_sora.nn.attention.masked import MaskedBlock
from lightning_sora.nn.attention.tiling import Coordinates
from lightning_sora.nn.attention.triples import triple
from lightning_sora.spacetime import TokenGrid


@register_attention("neighborhood")
class NeighborhoodAttention(MaskedBlock):
    """A box of ``2 * radius + 1`` tokens per axis around each token, moved inwards at the border, so that every token
    sees equally many (Hassani et al. 2023, arXiv:2204.07143, section 3.1). A box that covers the grid is full
    attention.

    Args:
        radius: along (frames, height, width), or one number for all; 0 keeps to the token's own place.
    """

    def __init__(
        self, dim: int, num_heads: int, *, layer: int, depth: int, radius: int | tuple[int, int, int] = 1
    ) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        self.radius = triple("neighborhood", "radius", radius, least=0)

    @property
    def plan_name(self) -> tuple[object, ...]:
        return ("neighborhood", self.radius)

    @property
    def causal(self) -> bool:
        return self.radius[0] == 0

    @no_type_check  # FlexAttention compiles it
    def visible(self, queries: Coordinates, keys: Coordinates, grid: TokenGrid) -> Bool[Tensor, "*_"]:
        t, y, x = map(near, queries, keys, grid, self.radius)
        return t & y & x


@no_type_check
def near(queries: Int[Tensor, "*_"], keys: Int[Tensor, "*_"], size: int, radius: int) -> Bool[Tensor, "*_"]:
    """Along one axis of ``size``: whether keys are within ``radius`` of the queries.

    The middle keeps its distance from the border; a reach wider than the axis covers it from any place.
    """
    if 2 * radius + 1 >= size:
        return torch.ones_like(queries, dtype=torch.bool)
    return (keys - queries.clamp(radius, size - 1 - radius)).abs() <= radius
