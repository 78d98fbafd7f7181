"""The layers of a Wan transformer, named as diffusers names them, on rows of tokens of any layout.

Wan (2025, arXiv:2503.20314, section 4.2), as its code and diffusers' ``transformer_wan.py`` have it: queries and keys
normalised over all heads together, an ungated MLP, one projection of the time for all layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers.float32 import KeptFloat32
from lightning_sora.models.denoisers.wan_config import WanConfig
from lightning_sora.nn.attention import AttentionBlock, attend_contexts
from lightning_sora.nn.attention.kernels import Kernel
from lightning_sora.nn.embed import sinusoidal
from lightning_sora.nn.layers import Modulation, modulate
from lightning_sora.nn.rope import Rope, rotate
from lightning_sora.spacetime import PatchSize, TokenLayout


class Float32Linear(KeptFloat32, nn.Linear):
    """A linear layer whose weights stay in float32."""


class Float32Norm(KeptFloat32, nn.LayerNorm):
    """Layer normalisation in float32, whatever the precision of what it normalises."""

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return super().forward(x.float()).type_as(x)


class WidthNorm(nn.RMSNorm):
    """An RMS norm in the precision of its weights, which autocast leaves higher than that of what it normalises."""

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return super().forward(x.to(self.weight.dtype))


def draw_table(table: Tensor) -> None:
    """Draws learned offsets to what the time says (AdaLN-single, PixArt-alpha section 2.3)."""
    nn.init.normal_(table, std=table.shape[-1] ** -0.5)


class PatchEmbedding(nn.Module):
    """Rows of patches to tokens: a convolution whose stride is its size, on patches that lie apart already.

    The weight is that of the convolution, ``[dim, channels, frames, height, width]``.
    """

    def __init__(self, channels: int, dim: int, patch: PatchSize) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(dim, channels, *patch))
        self.bias = nn.Parameter(torch.empty(dim))

    def reset_parameters(self) -> None:
        bound = self.weight[0].numel() ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)

    def forward(self, rows: Float[Tensor, "batch tokens in_dim"]) -> Float[Tensor, "batch tokens dim"]:
        return F.linear(rows, self.weight.movedim(1, -1).flatten(1), self.bias)

    def flops(self, tokens: int) -> int:
        return 2 * tokens * self.weight.numel()


class Perceptron(nn.Module):
    """Two linear layers around an activation.

    Args:
        kept: in float32.
    """

    def __init__(self, dim: int, hidden: int, activation: nn.Module, kept: bool = False) -> None:
        super().__init__()
        linear = Float32Linear if kept else nn.Linear
        self.linear_1, self.activation, self.linear_2 = linear(dim, hidden), activation, linear(hidden, hidden)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch hidden"]:
        return self.linear_2(self.activation(self.linear_1(x)))

    def flops(self, rows: int) -> int:
        return 2 * rows * self.linear_2.in_features * (self.linear_1.in_features + self.linear_2.in_features)


class ProjectedGELU(nn.Module):
    """A linear layer and its activation."""

    def __init__(self, dim: int, hidden: int, approximate: str) -> None:
        super().__init__()
        self.proj, self.approximate = nn.Linear(dim, hidden), approximate

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch hidden"]:
        return F.gelu(self.proj(x), approximate=self.approximate)


class FeedForward(nn.Module):
    """An ungated MLP; in the midst stands what is a dropout of nothing in diffusers, which counts it."""

    def __init__(self, dim: int, hidden: int, out: int, approximate: str) -> None:
        super().__init__()
        self.net = nn.Sequential(ProjectedGELU(dim, hidden, approximate), nn.Identity(), nn.Linear(hidden, out))
        self.products = hidden * (dim + out)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch out"]:
        return self.net(x)

    def flops(self, rows: int) -> int:
        return 2 * rows * self.products


class ImageEmbedding(nn.Module):
    """Image embeddings to the model's width."""

    pos_embed: nn.Parameter | None

    def __init__(self, image_dim: int, dim: int, places: int | None) -> None:
        super().__init__()
        self.norm1 = Float32Norm(image_dim, eps=1e-5)
        self.ff = FeedForward(image_dim, image_dim, dim, approximate="none")
        self.norm2 = Float32Norm(dim, eps=1e-5)
        self.register_parameter(
            "pos_embed", None if places is None else nn.Parameter(torch.empty(1, places, image_dim))
        )

    def reset_parameters(self) -> None:
        if self.pos_embed is not None:
            nn.init.zeros_(self.pos_embed)

    def forward(self, image: Float[Tensor, "clips tokens image_dim"]) -> Float[Tensor, "clips tokens dim"]:
        return self.norm2(self.ff(self.norm1(image if self.pos_embed is None else image + self.pos_embed)))


class ConditionEmbedding(nn.Module):
    """The time, the text and the image of clips, as the layers take them."""

    def __init__(self, config: WanConfig) -> None:
        super().__init__()
        dim = config.dim
        self.dim, self.freq_dim = dim, config.freq_dim
        self.time_embedder = Perceptron(config.freq_dim, dim, nn.SiLU(), kept=True)
        self.time_proj = nn.Linear(dim, WanBlock.parts * dim)
        self.text_embedder = Perceptron(config.text_dim, dim, nn.GELU(approximate="tanh"))
        image = config.image_dim
        self.image_embedder = None if image is None else ImageEmbedding(image, dim, config.pos_embed_seq_len)

    def time(self, t: Float[Tensor, "*shape"]) -> tuple[Float[Tensor, "*shape dim"], Float[Tensor, "*shape parts dim"]]:
        """What the output and what every layer is modulated by; in float32 as far as the weights are."""
        with torch.autocast(t.device.type, enabled=False):
            embedded = self.time_embedder(sinusoidal(t, self.freq_dim)).type_as(self.time_proj.weight)
            return embedded, self.time_proj(F.silu(embedded)).unflatten(-1, (-1, self.dim)).float()

    def flops(self, timesteps: int, text_rows: int, image_rows: int) -> int:
        time = self.time_embedder.flops(timesteps) + 2 * timesteps * self.dim * self.time_proj.out_features
        image = 0 if self.image_embedder is None else self.image_embedder.ff.flops(image_rows)
        return time + self.text_embedder.flops(text_rows) + image


class WanAttention(nn.Module):
    """Projections around an attention: queries and keys are normalised over all heads together."""

    def __init__(self, dim: int, num_heads: int, eps: float) -> None:
        super().__init__()
        self.dim, self.num_heads = dim, num_heads
        self.to_q, self.to_k, self.to_v = (nn.Linear(dim, dim) for _ in range(3))
        self.to_out = nn.Sequential(nn.Linear(dim, dim))
        self.norm_q, self.norm_k = WidthNorm(dim, eps), WidthNorm(dim, eps)

    def heads(self, x: Float[Tensor, "batch tokens dim"]) -> Float[Tensor, "batch tokens heads head_dim"]:
        return x.unflatten(-1, (self.num_heads, -1))


class WanSelfAttention(WanAttention):
    """Attention among the tokens of each clip, by the operator of any block."""

    def __init__(self, dim: int, num_heads: int, eps: float, operator: AttentionBlock) -> None:
        super().__init__(dim, num_heads, eps)
        self.operator = operator

    def forward(self, x: Float[Tensor, "batch tokens dim"], layout: TokenLayout, rope: Rope) -> Tensor:
        q, k = rotate(self.heads(self.norm_q(self.to_q(x))), rope), rotate(self.heads(self.norm_k(self.to_k(x))), rope)
        v = self.heads(self.to_v(x))
        mixed = self.operator.attend(q.type_as(v), k.type_as(v), v, layout).flatten(2)
        return self.to_out(self.operator.passed_on(mixed, x))

    def flops(self, layout: TokenLayout) -> int:
        return self.operator.flops(layout)  # which counts projections of the same widths


class WanCrossAttention(WanAttention):
    """Attention to the text of each clip, and to its image by keys and values of its own."""

    def __init__(self, dim: int, num_heads: int, eps: float, images: bool, kernel: Kernel) -> None:
        super().__init__(dim, num_heads, eps)
        self.kernel, self.images = kernel, images
        if images:
            self.add_k_proj, self.add_v_proj = nn.Linear(dim, dim), nn.Linear(dim, dim)
            self.norm_added_k = WidthNorm(dim, eps)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        text: Float[Tensor, "clips text_tokens dim"],
        image: Float[Tensor, "clips image_tokens dim"] | None,
        layout: TokenLayout,
    ) -> Float[Tensor, "batch tokens dim"]:
        q = self.heads(self.norm_q(self.to_q(x)))
        keys = self.norm_k(self.to_k(text))
        mixed = self._mixed(q, keys, self.to_v(text), layout)
        if image is not None:
            mixed = mixed + self._mixed(q, self.norm_added_k(self.add_k_proj(image)), self.add_v_proj(image), layout)
        return self.to_out(mixed.flatten(2))

    def _mixed(self, q: Tensor, k: Tensor, v: Tensor, layout: TokenLayout) -> Tensor:
        # Under autocast norms are in float32.
        return attend_contexts(q.type_as(v), self.heads(k).type_as(v), self.heads(v), None, layout, self.kernel)

    def flops(self, layout: TokenLayout, text_tokens: int, image_tokens: int) -> int:
        context = text_tokens + image_tokens
        return 4 * self.dim**2 * (layout.total + layout.clips * context) + 4 * layout.total * context * self.dim


class WanBlock(KeptFloat32):
    """Self-attention, attention to text, MLP; the first and the last modulated and gated, in float32."""

    parts = 2 * len(Modulation._fields)

    def __init__(self, config: WanConfig, operator: AttentionBlock, kernel: Kernel) -> None:
        super().__init__()
        dim, heads, self.eps = config.dim, config.num_attention_heads, config.eps
        self.scale_shift_table = nn.Parameter(torch.empty(1, self.parts, dim))
        self.attn1 = WanSelfAttention(dim, heads, self.eps, operator)
        self.attn2 = WanCrossAttention(dim, heads, self.eps, config.image_dim is not None, kernel)
        self.norm2 = Float32Norm(dim, eps=self.eps) if config.cross_attn_norm else nn.Identity()
        self.ffn = FeedForward(dim, config.ffn_dim, dim, approximate="tanh")

    def reset_parameters(self) -> None:
        draw_table(self.scale_shift_table)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        shared: Tensor,
        text: Float[Tensor, "clips text_tokens dim"],
        image: Float[Tensor, "clips image_tokens dim"] | None,
        layout: TokenLayout,
        rope: Rope,
        per_token: bool,
    ) -> Float[Tensor, "batch tokens dim"]:
        bent = self.scale_shift_table + shared
        parts = (bent if per_token else layout.per_token(bent)).unbind(dim=-2)
        attention, mlp = Modulation(*parts[:3]), Modulation(*parts[3:])
        y = self.attn1(modulate(x.float(), attention.shift, attention.scale, self.eps).type_as(x), layout, rope)
        x = (x.float() + attention.gate * y).type_as(x)
        x = x + self.attn2(self.norm2(x), text, image, layout)
        y = self.ffn(modulate(x.float(), mlp.shift, mlp.scale, self.eps).type_as(x))
        return (x.float() + mlp.gate * y).type_as(x)

    def flops(self, layout: TokenLayout, text_tokens: int, image_tokens: int) -> int:
        cross = self.attn2.flops(layout, text_tokens, image_tokens)
        return self.attn1.flops(layout) + cross + self.ffn.flops(layout.total)


def filled_up(
    embeddings: Float[Tensor, "clips text_tokens text_dim"], mask: Tensor, tokens: int
) -> Float[Tensor, "clips tokens text_dim"]:
    """Texts filled up with zeros, which also stand for what is no text.

    Raises:
        SoraError: longer ones.
    """
    length = embeddings.shape[1]
    if length > tokens:
        raise SoraError(
            f"captions of {length} tokens do not fit the {tokens} that a Wan transformer takes; set "
            f"max_tokens={tokens} of the text encoder"
        )
    kept = embeddings.masked_fill(~mask[..., None], 0.0)
    return F.pad(kept, (0, 0, 0, tokens - length))
