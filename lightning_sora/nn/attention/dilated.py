"""Dilated and skipping partitions: every group is spread over the whole clip."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import register_attention
from lightning_sora.nn.attention.partition import PartitionBlock
from lightning_sora.nn.attention.triples import triple
from lightning_sora.spacetime import TokenGrid


@register_attention("dilated")
class DilatedAttention(PartitionBlock):
    """Tokens whose coordinates agree modulo a stride (the grid attention of MaxViT, Tu et al. 2022,
    arXiv:2204.01697, section 3.2, in three dimensions). A stride of 1 is full attention.

    Args:
        stride: along (frames, height, width), or one number for all.
    """

    def __init__(
        self, dim: int, num_heads: int, *, layer: int, depth: int, stride: int | tuple[int, int, int] = 2
    ) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        self.stride = triple("dilated", "stride", stride, least=1)

    @property
    def plan_name(self) -> tuple[object, ...]:
        return ("dilated", self.stride)

    def group(self, coordinates: Int[Tensor, "total 4"], grids: Sequence[TokenGrid]) -> Int[Tensor, "total keys"]:
        return coordinates[:, 1:] % coordinates.new_tensor(self.stride)


@register_attention("skiparse")
class SkiparseAttention(PartitionBlock):
    """Every ``k``-th token of the clip in reading order, and on odd layers every ``k``-th run of ``k`` tokens
    (Open-Sora Plan, Lin et al. 2024, arXiv:2412.00131, section 2.2.2): two layers connect all tokens.

    Args:
        k: the number of groups, which divides the cost of attention.
    """

    def __init__(self, dim: int, num_heads: int, *, layer: int, depth: int, k: int = 4) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        if k < 1:
            raise SoraError(f"skiparse k={k} must be at least 1")
        self.k, self.runs = k, layer % 2 == 1

    @property
    def plan_name(self) -> tuple[object, ...]:
        return ("skiparse", self.k, self.runs)

    def group(self, coordinates: Int[Tensor, "total 4"], grids: Sequence[TokenGrid]) -> Int[Tensor, "total keys"]:
        sizes = torch.tensor([list(grid) for grid in grids])[coordinates[:, 0]]
        index = (coordinates[:, 1] * sizes[:, 1] + coordinates[:, 2]) * sizes[:, 2] + coordinates[:, 3]
        return (index // self.k % self.k if self.runs else index % self.k)[:, None]
