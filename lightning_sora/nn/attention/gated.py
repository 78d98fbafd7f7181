"""Gated attention: each head says how much of what it found is passed on."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import AttentionBlock, Heads, TextKeys, create_operator, register_attention
from lightning_sora.spacetime import TokenLayout


@register_attention("gated")
class GatedAttention(AttentionBlock):
    """A sigmoid gate of the input, per value, after the attention of another block (Qiu et al. 2025,
    arXiv:2505.06708, section 2.2: the elementwise gate after SDPA).

    Args:
        operator: spec of the block that is gated.
    """

    softmax = False

    def __init__(self, dim: int, num_heads: int, *, layer: int, depth: int, operator: str = "full") -> None:
        inner = create_operator(operator, dim, num_heads, layer=layer, depth=depth)  # the projections are this block's
        if isinstance(inner, GatedAttention):
            raise SoraError(f"gated operator={operator!r} is gated already; name the block inside")
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        self.inner = inner
        self.gate = nn.Linear(dim, dim, bias=False)
        self.use_kernel(inner.kernels[0])

    def use_kernel(self, name: str) -> None:
        if hasattr(self, "inner"):  # not yet while the base is made
            self.kernels = self.inner.kernels  # type: ignore[misc]
            self.inner.use_kernel(name)
        super().use_kernel(name)

    def passed_on(
        self, mixed: Float[Tensor, "batch tokens dim"], x: Float[Tensor, "batch tokens dim"]
    ) -> Float[Tensor, "batch tokens dim"]:
        return mixed * torch.sigmoid(self.gate(x))

    def attend(self, q: Heads, k: Heads, v: Heads, layout: TokenLayout, text: TextKeys | None = None) -> Heads:
        return self.inner.attend(q, k, v, layout, text)

    def attend_jointly(
        self, q: Heads, k: Heads, v: Heads, layout: TokenLayout, mask: Bool[Tensor, "batch tokens"] | None, first: int
    ) -> Heads:
        return self.inner.attend_jointly(q, k, v, layout, mask, first)

    @property
    def causal(self) -> bool:
        return self.inner.causal

    def receptive_field(self, layout: TokenLayout) -> Bool[Tensor, "total total"]:
        return self.inner.receptive_field(layout)

    def pairs(self, layout: TokenLayout) -> int:
        return self.inner.pairs(layout)

    def flops(self, layout: TokenLayout, text_tokens: int = 0) -> int:
        return self.inner.flops(layout, text_tokens) + 2 * layout.total * self.dim**2
