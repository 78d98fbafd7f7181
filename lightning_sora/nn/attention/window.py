"""Window attention: within boxes of spacetime."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from lightning_sora.nn.attention.base import register_attention
from lightning_sora.nn.attention.partition import PartitionBlock
from lightning_sora.nn.attention.triples import triple
from lightning_sora.spacetime import TokenGrid


@register_attention("window")
class WindowAttention(PartitionBlock):
    """Shifted 3D windows (Video Swin, Liu et al. 2021, arXiv:2106.13230, section 3.2).

    Windows of odd layers are shifted by half a window, rounded down, along each axis that one window does not
    cover. Those at the border are smaller, where Swin wraps around and masks: nothing mixes with the opposite border.

    Args:
        size: tokens per window along (frames, height, width), or one number for all.
    """

    def __init__(
        self, dim: int, num_heads: int, *, layer: int, depth: int, size: int | tuple[int, int, int] = (2, 4, 4)
    ) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        self.size = triple("window", "size", size, least=1)
        self.shift = tuple(s // 2 if layer % 2 else 0 for s in self.size)

    @property
    def plan_name(self) -> tuple[object, ...]:
        return ("window", self.size, self.shift)

    @property
    def causal(self) -> bool:
        return self.size[0] == 1

    def group(self, coordinates: Int[Tensor, "total 4"], grids: Sequence[TokenGrid]) -> Int[Tensor, "total keys"]:
        size, shift = coordinates.new_tensor(self.size), coordinates.new_tensor(self.shift)
        grid = coordinates.new_tensor([list(grid) for grid in grids])[coordinates[:, 0]]
        return (coordinates[:, 1:] - torch.where(grid > size, shift, 0)).div(size, rounding_mode="floor")
