"""Frame-causal attention: no frame sees a later one."""

from __future__ import annotations

from typing import no_type_check

from jaxtyping import Bool
from torch import Tensor

from lightning_sora.nn.attention.base import register_attention
from lightning_sora.nn.attention.masked import MaskedBlock
from lightning_sora.nn.attention.tiling import Coordinates
from lightning_sora.spacetime import TokenGrid


@register_attention("causal")
class CausalAttention(MaskedBlock):
    """All tokens of the same and of earlier frames: what generating frame by frame needs (block-wise causal
    attention of CausVid, Yin et al. 2024, arXiv:2412.07772, section 4.1)."""

    plan_name = ("causal",)
    causal = True

    @no_type_check  # FlexAttention compiles it
    def visible(self, queries: Coordinates, keys: Coordinates, grid: TokenGrid) -> Bool[Tensor, "*_"]:
        return keys.t <= queries.t
