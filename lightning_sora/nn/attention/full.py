"""Full attention: every token of a clip sees every other."""

from __future__ import annotations

from collections.abc import Sequence

from jaxtyping import Bool, Int
from torch import Tensor

from lightning_sora.nn.attention.base import Heads, register_attention
from lightning_sora.nn.attention.partition import PartitionBlock
from lightning_sora.spacetime import TokenGrid, TokenLayout


@register_attention("full")
class FullAttention(PartitionBlock):
    """Joint spacetime attention, as in ViViT model 1 (Arnab et al. 2021, arXiv:2103.15691, section 3.3)
    and in Sora-class transformers (CogVideoX, arXiv:2408.06072, section 2.2)."""

    plan_name = ("full",)

    def group(self, coordinates: Int[Tensor, "total 4"], grids: Sequence[TokenGrid]) -> Int[Tensor, "total keys"]:
        return coordinates[:, :1]

    def attend_jointly(
        self, q: Heads, k: Heads, v: Heads, layout: TokenLayout, mask: Bool[Tensor, "batch tokens"] | None, first: int
    ) -> Heads:
        if type(self).attend is not FullAttention.attend:  # a block made of this one, which mixes otherwise
            return super().attend_jointly(q, k, v, layout, mask, first)
        return self.kernel(q, k, v, mask)  # all see all: one call, and the same sums as in the other network
