"""Differential attention: what two softmax maps agree on cancels."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import Heads, TextKeys, register_attention, with_text
from lightning_sora.nn.attention.full import FullAttention
from lightning_sora.nn.attention.kernels import matmul
from lightning_sora.nn.attention.segments import gather, scatter, segment_clips
from lightning_sora.spacetime import TokenLayout


class Balance(nn.Module):
    """The weight of the second map: ``exp(q1 k1) - exp(q2 k2) + initial`` (Ye et al. 2024, Eq. 2)."""

    def __init__(self, width: int, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.q1, self.k1, self.q2, self.k2 = (nn.Parameter(torch.empty(width)) for _ in range(4))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1)

    def forward(self) -> Float[Tensor, ""]:
        return (self.q1 * self.k1).sum().exp() - (self.q2 * self.k2).sum().exp() + self.initial


@register_attention("differential")
class DifferentialAttention(FullAttention):
    """``(softmax(q1 k1) - lambda softmax(q2 k2)) v`` over the clip, normalised per head (Ye et al. 2024,
    arXiv:2410.05258, section 2.1).

    The two maps take alternate pairs of a head's channels, so that rotary positions of every axis reach both.
    """

    softmax = False

    def __init__(self, dim: int, num_heads: int, *, layer: int, depth: int) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        head_dim = dim // num_heads
        if head_dim % 4:
            raise SoraError(
                f"differential attention halves its heads in pairs: head_dim={head_dim} (dim={dim} / "
                f"num_heads={num_heads}) must be divisible by 4"
            )
        self.initial = 0.8 - 0.6 * math.exp(-0.3 * layer)  # section 2.1, layers from 0
        self.balance = Balance(head_dim // 2, self.initial)
        self.norm = nn.LayerNorm(head_dim, eps=1e-5, bias=False)

    def attend(self, q: Heads, k: Heads, v: Heads, layout: TokenLayout, text: TextKeys | None = None) -> Heads:
        groups = self.groups(layout, q.device)
        clips = segment_clips(groups, layout, q.device)
        balance = self.balance().to(v.dtype)
        mixed = []
        for queries, keys, values, clip in zip(
            gather(q, groups), gather(k, groups), gather(v, groups), clips, strict=True
        ):
            keys, values, mask = with_text(keys, values, text, clip)
            first, second = self._maps(queries, keys, values, mask)
            mixed.append(first - balance * second)
        return (1 - self.initial) * self.norm(scatter(mixed, groups, layout.shape))

    def _maps(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """What each of the two maps makes of the values.

        Fused kernels want queries as wide as values: both maps are one call over twice the queries, in which each has
        zeros where the other has its channels, at twice the scores of two calls and half the time.
        """
        if self.kernel is matmul:
            halves = zip(_halves(q), _halves(k), strict=True)
            first, second = (self.kernel(one, other, v, mask) for one, other in halves)
            return first, second
        # Kernels divide scores by the root of the whole width, of which a map has half.
        own = torch.tensor([1, 1, 0, 0], device=q.device).repeat(q.shape[-1] // 4).to(q.dtype) * math.sqrt(2)
        first, second = self.kernel(torch.cat([q * own, q * own.flip(0)], dim=1), k, v, mask).chunk(2, dim=1)
        return first, second

    def flops(self, layout: TokenLayout, text_tokens: int = 0) -> int:
        pairs = self.pairs(layout) + layout.total * text_tokens
        return 8 * layout.total * self.dim**2 + 6 * pairs * self.dim  # two maps of half width, two sums of values


def _halves(x: Heads) -> tuple[Tensor, Tensor]:
    pairs = x.unflatten(-1, (-1, 2, 2))  # neighbours are one rotation
    return pairs[..., 0, :].flatten(-2), pairs[..., 1, :].flatten(-2)
