"""Joint attention to text: each clip's text offers keys and values to every group of its tokens."""

from __future__ import annotations

from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lightning_sora.nn.attention.base import TextKeys, head_norm, head_width
from lightning_sora.spacetime import TokenLayout


class JointText(nn.Module):
    """Text tokens as further keys of self-attention, in one softmax with the tokens of the clip.

    The key and value half of the joint attention of MMDiT (Esser et al. 2024, arXiv:2403.03206, section 4);
    the text itself is not rewritten from layer to layer, so that the text is the same for every block
    and only the way in differs from cross-attention.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.dim, self.head_dim = dim, head_width(dim, num_heads)
        self.key_value = nn.Linear(dim, 2 * dim, bias=False)
        self.k_norm = head_norm(self.head_dim)

    def forward(
        self, text: Float[Tensor, "clips text_tokens dim"], mask: Bool[Tensor, "clips text_tokens"]
    ) -> TextKeys:
        k, v = rearrange(self.key_value(text), "c n (two h d) -> c n two h d", two=2, d=self.head_dim).unbind(2)
        return TextKeys(self.k_norm(k), v, mask)

    def flops(self, layout: TokenLayout, text_tokens: int) -> int:
        """Forward FLOPs of the projection; those of the attention are the block's."""
        return 4 * self.dim**2 * layout.clips * text_tokens
