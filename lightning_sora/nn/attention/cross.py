"""Cross-attention from the tokens of each clip to the tokens of its text."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_sora.nn.attention.base import Heads, head_norm, head_width
from lightning_sora.nn.attention.kernels import Kernel, kernel_for
from lightning_sora.nn.attention.segments import gather, scatter
from lightning_sora.nn.layers import ZeroLinear
from lightning_sora.spacetime import TokenLayout


def attend_contexts(
    q: Heads,
    k: Float[Tensor, "clips context heads head_dim"],
    v: Float[Tensor, "clips context heads head_dim"],
    mask: Bool[Tensor, "clips context"] | None,
    layout: TokenLayout,
    kernel: Kernel,
) -> Heads:
    """What the tokens of each clip find in the context of their clip, whatever the layout.

    Args:
        mask: True for what counts of a context, at least once per clip; None where all of it does.
    """
    if not layout.packed:
        return kernel(q, k, v, mask)
    # One kernel call per distinct clip length; the clips of a segment are those of its first tokens. Contexts are put
    # in that order together: of one selection per segment, each gradient would be as large as all contexts.
    groups = layout.groups(lambda coordinates, _: coordinates[:, :1], "clip", q.device)
    clip = layout.coordinates(q.device)[:, 0]
    order = torch.cat([clip.index_select(0, segment[:, 0]) for segment in groups.segments])
    counts = [len(segment) for segment in groups.segments]
    keys, values = (one.index_select(0, order).split(counts) for one in (k, v))
    masks = [None] * len(counts) if mask is None else mask.index_select(0, order).split(counts)
    queries = gather(q, groups)
    mixed = [kernel(*of_segment) for of_segment in zip(queries, keys, values, masks, strict=True)]
    return scatter(mixed, groups, layout.shape)


class CrossAttention(nn.Module):
    """Text enters every layer (PixArt-alpha, Chen et al. 2023, arXiv:2310.00426, section 2.3).

    The output starts at zero, so that a layer begins without text.
    """

    def __init__(self, dim: int, num_heads: int, kernel: str = "sdpa") -> None:
        super().__init__()
        self.dim, self.head_dim = dim, head_width(dim, num_heads)
        self.query = nn.Linear(dim, dim, bias=False)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.q_norm, self.k_norm = head_norm(self.head_dim), head_norm(self.head_dim)
        self.out = ZeroLinear(dim, dim, bias=False)
        self.kernel = kernel_for(kernel, ("sdpa", "matmul", "flex", "varlen"), "cross-attention")

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        text: Float[Tensor, "clips text_tokens dim"],
        mask: Bool[Tensor, "clips text_tokens"],
        layout: TokenLayout,
    ) -> Float[Tensor, "batch tokens dim"]:
        """Attends from each clip to its text.

        Args:
            mask: True where there is text; at least once per clip.
        """
        q = self.q_norm(rearrange(self.query(x), "b n (h d) -> b n h d", d=self.head_dim))
        k, v = rearrange(self.key_value(text), "c n (two h d) -> c n two h d", two=2, d=self.head_dim).unbind(2)
        q, k = q.type_as(v), self.k_norm(k).type_as(v)  # autocast on CUDA normalises in float32
        return self.out(attend_contexts(q, k, v, mask, layout, self.kernel).flatten(2))

    def flops(self, layout: TokenLayout, text_tokens: int) -> int:
        """Forward FLOPs, a multiplication and an addition counting as two."""
        projections = 4 * self.dim**2 * (layout.total + layout.clips * text_tokens)
        return projections + 4 * layout.total * text_tokens * self.dim
