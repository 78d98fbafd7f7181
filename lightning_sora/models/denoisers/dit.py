"""DiT: a diffusion transformer over spacetime tokens.

Peebles & Xie 2022 (arXiv:2212.09748), with text by cross-attention and shared modulation as in
PixArt-alpha (Chen et al. 2023, arXiv:2310.00426). It predicts a row per token; what the row means is
the objective's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_sora.errors import SoraError
from lightning_sora.models.denoisers.base import DENOISERS, Condition, Denoiser
from lightning_sora.models.memory_estimate import check_weights_fit
from lightning_sora.models.text_base import TextContext
from lightning_sora.nn.attention import CrossAttention, JointText, create_attention, layer_specs
from lightning_sora.nn.embed import TimestepEmbedding
from lightning_sora.nn.layers import GatedMLP, Modulation, ZeroLinear, modulate, normalize
from lightning_sora.nn.rope import Rope, Stretch, axis_pairs, rotary
from lightning_sora.registry import Spec
from lightning_sora.spacetime import PatchSize, TokenLayout


class OwnModulation(nn.Module):
    """A projection of the condition that starts at zero (AdaLN-Zero, DiT section 3.2)."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = ZeroLinear(dim, parts * dim)

    def forward(self, condition: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch parts dim"]:
        return self.linear(F.silu(condition)).unflatten(-1, (self.parts, -1))

    def flops(self, conditions: int) -> int:
        return 2 * conditions * self.linear.in_features * self.linear.out_features


class ModulationTable(nn.Module):
    """A layer's learned offset to the modulation that all layers share (AdaLN-single, PixArt-alpha section 2.3)."""

    def __init__(self, dim: int, parts: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty(parts, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.table)

    def forward(self, shared: Float[Tensor, "*batch parts dim"]) -> Float[Tensor, "*batch parts dim"]:
        return shared + self.table

    def flops(self, conditions: int) -> int:
        return 0


CONDITIONING = ("cross", "joint")


class DiTBlock(nn.Module):
    """Self-attention, attention to text, gated MLP; the first and the last modulated and gated.

    Text enters by cross-attention of its own, or jointly, as further keys of the self-attention.
    """

    parts = 2 * len(Modulation._fields)

    def __init__(
        self,
        spec: Spec,
        dim: int,
        num_heads: int,
        *,
        layer: int,
        depth: int,
        mlp_ratio: float,
        modulation: nn.Module,
        conditioning: str,
        kernel: str,
    ) -> None:
        super().__init__()
        self.modulation = modulation
        self.attention = create_attention(spec, dim, num_heads, layer=layer, depth=depth, kernel=kernel)
        self.cross = CrossAttention(dim, num_heads, kernel) if conditioning == "cross" else None
        self.joint = JointText(dim, num_heads) if conditioning == "joint" else None
        self.mlp = GatedMLP(dim, mlp_ratio)

    def forward(
        self,
        x: Float[Tensor, "batch tokens dim"],
        condition: Tensor,
        text: TextContext,
        layout: TokenLayout,
        rope: Rope,
        per_token: bool,
    ) -> Float[Tensor, "batch tokens dim"]:
        parts = self.modulation(condition)
        parts = (parts if per_token else layout.per_token(parts)).unbind(dim=-2)
        attention, mlp = Modulation(*parts[:3]), Modulation(*parts[3:])
        keys = None if self.joint is None else self.joint(text.embeddings, text.mask)
        y = self.attention(modulate(x, attention.shift, attention.scale), layout, rope, keys)
        x = x + attention.gate * y
        if self.cross is not None:
            x = x + self.cross(normalize(x), text.embeddings, text.mask, layout)
        return x + mlp.gate * self.mlp(modulate(x, mlp.shift, mlp.scale))

    def flops(self, layout: TokenLayout, text_tokens: int, timesteps: int) -> int:
        if self.joint is not None:
            attention = self.attention.flops(layout, text_tokens) + self.joint.flops(layout, text_tokens)
        else:
            assert self.cross is not None
            attention = self.attention.flops(layout) + self.cross.flops(layout, text_tokens)
        modulation = self.modulation.flops(timesteps)  # type: ignore[operator]
        return modulation + attention + self.mlp.flops(layout.total)


@DENOISERS.register("dit")
class DiT(Denoiser):
    """A transformer over spacetime tokens whose layers, text and modulation are options.

    Args:
        channels: of a latent position, in and out.
        text_dim: width of the text encoder.
        patch_size: latent positions per token (frames, height, width).
        dim: width of the tokens.
        depth: number of layers.
        num_heads: divides ``dim``; ``dim / num_heads`` is even and at least 6.
        attention: spec of the self-attention, or a pattern over layers (see :func:`layer_specs`).
        mlp_ratio: hidden width of the gated MLP over ``dim``.
        modulation: ``"single"``: one projection of the condition for all layers, plus a learned table
            per layer; ``"per_block"``: a projection per layer.
        conditioning: how text enters every layer: ``"cross"``, by an attention of its own; ``"joint"``, as further
            keys of the self-attention, whatever its block.
        kernel: how attention is computed (see :mod:`lightning_sora.nn.attention.kernels`).
        checkpoint: recompute each layer in the backward pass, to save memory.

    Raises:
        SoraError: widths that do not divide, an unknown block, kernel, modulation or conditioning, or more weights
            than this machine can hold.
    """

    lora_targets = ("project.qkv", "attention.out", "cross.query", "cross.key_value", "cross.out", "joint.key_value")

    def __init__(
        self,
        channels: int,
        text_dim: int,
        *,
        patch_size: Sequence[int] = (1, 1, 1),
        dim: int,
        depth: int,
        num_heads: int,
        attention: str | Sequence[str] = "full",
        mlp_ratio: float = 2.67,
        modulation: str = "single",
        conditioning: str = "cross",
        kernel: str = "sdpa",
        checkpoint: bool = False,
    ) -> None:
        super().__init__(channels, text_dim, PatchSize.of(patch_size))
        if modulation not in ("single", "per_block"):
            raise SoraError(f"unknown modulation {modulation!r}; choose 'single' or 'per_block'")
        if conditioning not in CONDITIONING:
            raise SoraError(f"unknown conditioning {conditioning!r}; choose {' or '.join(map(repr, CONDITIONING))}")
        specs = layer_specs(attention, depth)
        check_weights_fit("a DiT", int(depth * dim**2 * (4 + 3 * mlp_ratio)))  # of attention and MLP, at least
        self.dim, self.checkpoint = dim, checkpoint
        self.embed = nn.Linear(self.in_dim, dim)
        self.time = TimestepEmbedding(dim)
        self.text = nn.Linear(text_dim, dim)
        self.pooled = nn.Linear(dim, dim)
        single = modulation == "single"
        self.modulation = OwnModulation(dim, DiTBlock.parts) if single else nn.Identity()
        self.blocks = nn.ModuleList(
            DiTBlock(
                spec,
                dim,
                num_heads,
                layer=layer,
                depth=depth,
                mlp_ratio=mlp_ratio,
                modulation=(ModulationTable if single else OwnModulation)(dim, DiTBlock.parts),
                conditioning=conditioning,
                kernel=kernel,
            )
            for layer, spec in enumerate(specs)
        )
        self.final_modulation = OwnModulation(dim, 2)
        self.unembed = ZeroLinear(dim, self.in_dim)
        self.head_dim = dim // num_heads
        axis_pairs(self.head_dim, axes=3)  # refuses a head too narrow for three axes now

    def forward(
        self,
        x: Float[Tensor, "batch tokens in_dim"],
        t: Float[Tensor, " clips"] | Float[Tensor, "batch tokens"],
        text: TextContext,
        layout: TokenLayout,
        stretch: Stretch | None = None,
        condition: Condition | None = None,
    ) -> Float[Tensor, "batch tokens in_dim"]:
        self.check(x, t, text, layout, condition)
        per_token = t.dim() == 2
        text = self._project(text)
        pooled = self.pooled(_mean(text))
        condition = self.time(t.to(self.dtype)) + (layout.per_token(pooled) if per_token else pooled)
        one = layout.coordinates(x.device)[: layout.shape[1], 1:]  # the clips of a uniform batch are alike
        if stretch is not None:
            stretch = stretch._replace(factors=layout.per_token(stretch.factors.to(x.device))[0])
        rope = rotary(one, self.head_dim, stretch=stretch)
        shared = self.modulation(condition)
        x = self.embed(x)
        for block in self.blocks:
            run = partial(checkpoint, block, use_reentrant=False) if self.checkpoint and self.training else block
            x = run(x, shared, text, layout, rope, per_token)
        final = self.final_modulation(condition)
        shift, scale = (final if per_token else layout.per_token(final)).unbind(dim=-2)
        return self.unembed(modulate(x, shift, scale))

    def flops(self, layout: TokenLayout, text_tokens: int, per_token: bool = False) -> int:
        timesteps = layout.total if per_token else layout.clips
        rows = 4 * layout.total * self.in_dim * self.dim
        text = 2 * layout.clips * self.dim * (text_tokens * self.text_dim + self.dim)
        condition = self.time.flops(timesteps) + self.final_modulation.flops(timesteps)
        if isinstance(self.modulation, OwnModulation):
            condition += self.modulation.flops(timesteps)
        blocks = sum(block.flops(layout, text_tokens, timesteps) for block in self.blocks)  # type: ignore[operator]
        return rows + text + condition + blocks

    def _project(self, text: TextContext) -> TextContext:
        return TextContext(self.text(normalize(text.embeddings)), text.mask)


def _mean(text: TextContext) -> Float[Tensor, "clips dim"]:
    weight = text.mask[..., None].to(text.embeddings.dtype)
    return (text.embeddings * weight).sum(dim=1) / weight.sum(dim=1)
