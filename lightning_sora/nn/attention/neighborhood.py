"""Neighbourhood attention: every token sees the box around it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_sora.nn.attention.base import register_attention
from lightning_sora.nn.attention.masked import MaskedBlock
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

    def visible(
        self, queries: Int[Tensor, "queries 1 3"], keys: Int[Tensor, "1 keys 3"], grid: TokenGrid
    ) -> Bool[Tensor, "queries keys"]:
        size = torch.tensor(list(grid))
        radius = torch.tensor(self.radius)
        # The box's middle keeps its distance from the border; a box wider than the grid covers it from any place.
        lowest, highest = radius, (size - 1 - radius)
        middle = torch.maximum(torch.minimum(queries, highest), lowest)
        near = (keys - middle).abs() <= radius
        return (near | (2 * radius + 1 >= size)).all(dim=-1)
