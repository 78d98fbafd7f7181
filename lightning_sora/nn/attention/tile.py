"""Sliding tile attention: tiles of tokens see the tiles around them."""

from __future__ import annotations

from typing import no_type_check

from jaxtyping import Bool
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import register_attention
from lightning_sora.nn.attention.masked import MaskedBlock
from lightning_sora.nn.attention.neighborhood import near
from lightning_sora.nn.attention.tiling import Coordinates
from lightning_sora.nn.attention.triples import triple
from lightning_sora.spacetime import TokenGrid


@register_attention("tile")
class TileAttention(MaskedBlock):
    """Neighbourhood attention in units of tiles, whose tokens all see the same, so that no block of scores is half
    empty (Zhang et al. 2025, arXiv:2502.04507, section 3.2). At the border the window is moved inwards.

    Args:
        tile: tokens per tile along (frames, height, width), or one number for all; the last may be smaller.
        window: tiles that a tile sees along each axis, itself in the middle: odd numbers.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        layer: int,
        depth: int,
        tile: int | tuple[int, int, int] = 2,
        window: int | tuple[int, int, int] = 3,
    ) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        self.tile = triple("tile", "tile", tile, least=1)
        self.window = triple("tile", "window", window, least=1)
        if not all(w % 2 for w in self.window):
            raise SoraError(f"tile window={window} must be odd along each axis, with the tile itself in the middle")

    @property
    def plan_name(self) -> tuple[object, ...]:
        return ("tile", self.tile, self.window)

    @property
    def causal(self) -> bool:
        return self.tile[0] == self.window[0] == 1

    @no_type_check  # FlexAttention compiles it
    def visible(self, queries: Coordinates, keys: Coordinates, grid: TokenGrid) -> Bool[Tensor, "*_"]:
        t, y, x = (
            near(query // tile, key // tile, -(-size // tile), window // 2)
            for query, key, size, tile, window in zip(queries, keys, grid, self.tile, self.window, strict=True)
        )
        return t & y & x
