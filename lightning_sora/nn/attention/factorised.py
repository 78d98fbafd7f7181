"""Factorised attention: within frames, or along time; commonly in turns, ``"spatial, temporal"``."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Int
from torch import Tensor

from lightning_sora.nn.attention.base import register_attention
from lightning_sora.nn.attention.partition import PartitionBlock
from lightning_sora.spacetime import TokenGrid


@register_attention("spatial")
class SpatialAttention(PartitionBlock):
    """Within each row of tokens in time (TimeSformer, Bertasius et al. 2021, arXiv:2102.05095, section 3;
    Latte, Ma et al. 2024, arXiv:2401.03048, variant 1)."""

    plan_name = ("spatial",)
    causal = True

    def group(self, coordinates: Int[Tensor, "total 4"], grids: Sequence[TokenGrid]) -> Int[Tensor, "total keys"]:
        return coordinates[:, 1:2]


@register_attention("temporal")
class TemporalAttention(PartitionBlock):
    """Along time, at each place (the other half of TimeSformer's divided attention and of Latte)."""

    plan_name = ("temporal",)

    def group(self, coordinates: Int[Tensor, "total 4"], grids: Sequence[TokenGrid]) -> Int[Tensor, "total keys"]:
        return coordinates[:, 2:]


@register_attention("axial")
class AxialAttention(PartitionBlock):
    """Along one axis at a time: time, height, width in turn, layer by layer (Ho et al. 2019, arXiv:1912.12180,
    section 3)."""

    def __init__(self, dim: int, num_heads: int, *, layer: int, depth: int) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        self.axis = layer % 3

    @property
    def plan_name(self) -> tuple[object, ...]:
        return ("axial", self.axis)

    @property
    def causal(self) -> bool:
        return self.axis != 0

    def group(self, coordinates: Int[Tensor, "total 4"], grids: Sequence[TokenGrid]) -> Int[Tensor, "total keys"]:
        fixed = [1 + axis for axis in range(3) if axis != self.axis]
        return coordinates[:, fixed]
