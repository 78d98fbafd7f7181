"""Linear attention: a sum over keys that all queries share, whose cost grows with the number of tokens only."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.nn.attention.base import Heads, TextKeys, register_attention, with_text
from lightning_sora.nn.attention.full import FullAttention
from lightning_sora.nn.attention.segments import gather, scatter, segment_clips
from lightning_sora.spacetime import TokenLayout

SMALL = 1e-6


@register_attention("linear")
class LinearAttention(FullAttention):
    """``relu(q) sum_k relu(k) v / relu(q) sum_k relu(k)`` over the clip (Katharopoulos et al. 2020, arXiv:2006.16236,
    Eq. 5; with ReLU as in EfficientViT, arXiv:2205.14756, section 3.1, and SANA, arXiv:2410.10629, section 2.2).

    Sums are in float32.

    Args:
        conv: width of a depthwise convolution over (t, y, x) of the values, an odd number, which brings back the
            locality that linear attention lacks (EfficientViT, section 3.1); 0 for none.
    """

    kernels = ("matmul", "sdpa")
    softmax = False

    def __init__(self, dim: int, num_heads: int, *, layer: int, depth: int, conv: int = 0) -> None:
        super().__init__(dim, num_heads, layer=layer, depth=depth)
        if conv < 0 or (conv and conv % 2 == 0):
            raise SoraError(f"linear conv={conv} must be an odd number, or 0 for none")
        self.conv = nn.Conv3d(dim, dim, conv, padding=conv // 2, groups=dim, bias=False) if conv else None

    def attend(self, q: Heads, k: Heads, v: Heads, layout: TokenLayout, text: TextKeys | None = None) -> Heads:
        local = v if self.conv is None else v + self._convolved(v, layout)
        groups = self.groups(layout, q.device)
        clips = segment_clips(groups, layout, q.device)
        mixed = []
        for queries, keys, values, clip in zip(
            gather(q, groups), gather(k, groups), gather(local, groups), clips, strict=True
        ):
            keys, values, mask = with_text(keys, values, text, clip)
            mixed.append(_linear(queries, keys, values, mask))
        return scatter(mixed, groups, layout.shape)

    def _convolved(self, v: Heads, layout: TokenLayout) -> Heads:
        assert self.conv is not None
        rows = []
        if not layout.packed:
            grid = layout.grids[0]
            maps = rearrange(v, "b (t y x) h d -> b (h d) t y x", t=grid.frames, y=grid.height)
            return rearrange(self.conv(maps), "b (h d) t y x -> b (t y x) h d", h=v.shape[2])
        for part, grid in zip(layout.split(v), layout.grids, strict=True):
            maps = rearrange(part, "(t y x) h d -> 1 (h d) t y x", t=grid.frames, y=grid.height)
            rows.append(rearrange(self.conv(maps), "1 (h d) t y x -> (t y x) h d", h=v.shape[2]))
        return layout.join(rows)

    def flops(self, layout: TokenLayout, text_tokens: int = 0) -> int:
        keys = layout.total + layout.clips * text_tokens
        head_dim = self.dim // self.num_heads
        sums = 2 * (keys + layout.total) * self.dim * (head_dim + 1)
        convolution = 0 if self.conv is None else 2 * layout.total * self.dim * self.conv.kernel_size[0] ** 3
        return 8 * layout.total * self.dim**2 + sums + convolution


def _linear(q: Tensor, k: Tensor, v: Tensor, mask: Bool[Tensor, "batch keys"] | None) -> Tensor:
    dtype = v.dtype
    with torch.autocast(q.device.type, enabled=False):
        q, k, v = (x.float() if x.dtype in (torch.float16, torch.bfloat16) else x for x in (q, k, v))
        q, k = torch.relu(q).transpose(1, 2), torch.relu(k).transpose(1, 2)
        if mask is not None:
            k = k * mask[:, None, :, None]
        # A column of ones carries the normaliser through the same product.
        v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1).transpose(1, 2)
        summed = q @ (k.transpose(-1, -2) @ v)
        mixed = summed[..., :-1] / (summed[..., -1:] + SMALL)
    return mixed.transpose(1, 2).to(dtype)
