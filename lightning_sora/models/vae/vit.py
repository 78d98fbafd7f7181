"""A video VAE of transformers, whose attention comes from the same registry as the DiT's.

A ViT auto-encoder in the manner of ViTok (Hansen-Estruch et al. 2025, arXiv:2501.09755, section 2): one linear
embedding of spacetime patches, transformer blocks on the latent grid, a linear head, and the mirror of it. Compute
does not grow with the resolution inside a patch, as it does for convolutions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.models.facts import VAEFacts
from lightning_sora.models.vae.base import VAES, Posterior, VideoVAE
from lightning_sora.models.vae.causal_conv import LOGVAR_RANGE, PosteriorHead
from lightning_sora.nn.attention import create_attention, layer_specs
from lightning_sora.nn.layers import GatedMLP
from lightning_sora.nn.rope import Rope, axis_pairs, rotary
from lightning_sora.registry import Spec
from lightning_sora.spacetime import PatchSize, TokenGrid, TokenLayout, patchify, unpatchify


class Block(nn.Module):
    """Self-attention and a gated MLP, each on normalised input (pre-norm)."""

    def __init__(self, spec: Spec, dim: int, num_heads: int, *, layer: int, depth: int, mlp_ratio: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(dim, bias=False) for _ in range(2))
        self.attention = create_attention(spec, dim, num_heads, layer=layer, depth=depth)
        self.mlp = GatedMLP(dim, mlp_ratio)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], layout: TokenLayout, rope: Rope
    ) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.attention(self.norms[0](x), layout, rope)
        return x + self.mlp(self.norms[1](x))


class Transformer(nn.Module):
    """Rows to rows, through blocks on one grid."""

    def __init__(
        self,
        in_dim: int,
        output: nn.Module,
        *,
        dim: int,
        num_heads: int,
        attention: str | Sequence[str],
        depth: int,
        mlp_ratio: float,
    ) -> None:
        super().__init__()
        self.head_dim = dim // num_heads
        self.input = nn.Linear(in_dim, dim)
        self.blocks = nn.ModuleList(
            Block(spec, dim, num_heads, layer=layer, depth=depth, mlp_ratio=mlp_ratio)
            for layer, spec in enumerate(layer_specs(attention, depth))
        )
        self.norm = nn.LayerNorm(dim, bias=False)
        self.output = output

    def forward(self, rows: Float[Tensor, "batch tokens in_dim"], grid: TokenGrid) -> Float[Tensor, "batch tokens _"]:
        layout = TokenLayout.uniform(grid, len(rows))
        rope = rotary(layout.coordinates(rows.device)[: grid.tokens, 1:], self.head_dim)
        x = self.input(rows)
        for block in self.blocks:
            x = block(x, layout, rope)
        return self.output(self.norm(x))

    @property
    def causal(self) -> bool:
        """Whether no token sees a later frame, as the blocks declare it."""
        return all(block.attention.causal for block in self.blocks)  # type: ignore[union-attr]


class ZeroConv2d(nn.Conv2d):
    """A convolution that starts at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Refine(nn.Module):
    """A residual pair of 3x3 convolutions on each frame's pixels, which starts at zero: it wears down the seams that a
    linear head leaves between patches."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.widen = nn.Conv2d(3, channels, 3, padding=1)
        self.narrow = ZeroConv2d(channels, 3, 3, padding=1)

    def forward(
        self, video: Float[Tensor, "batch 3 frames height width"]
    ) -> Float[Tensor, "batch 3 frames height width"]:
        frames = rearrange(video, "b c t h w -> (b t) c h w")
        change = self.narrow(F.silu(self.widen(frames)))
        return video + rearrange(change, "(b t) c h w -> b c t h w", b=len(video))


@VAES.register("vit")
class ViTVAE(VideoVAE):
    """A VAE of two transformers over patches of pixels.

    Args:
        stride: pixels per latent position along (frames, height, width).
        latent_channels: values per latent position.
        dim, num_heads, mlp_ratio: of both transformers; ``dim / num_heads`` is even and at least 6.
        encoder_depth, decoder_depth: number of layers.
        attention: spec of the self-attention, or a pattern over layers. With ``"causal"`` or ``"spatial"`` the first
            latent frame sees the first frame alone, and no frame a later one; see :attr:`facts`.
        refine: channels of two convolutions on the decoded pixels; 0 for none.

    Attributes:
        facts: causal where no frame sees a later one, as the blocks declare it.

    Raises:
        SoraError: an option is out of range, or an unknown block.
    """

    decoder_parts = ("decoder", "refine")
    decoder_options = ("decoder_depth", "refine")

    def __init__(
        self,
        *,
        stride: tuple[int, int, int] = (4, 8, 8),
        latent_channels: int = 16,
        dim: int = 192,
        num_heads: int = 4,
        mlp_ratio: float = 2.67,
        encoder_depth: int = 2,
        decoder_depth: int = 4,
        attention: str | list[str] = "causal",
        refine: int = 16,
    ) -> None:
        config = {
            "stride": list(stride), "latent_channels": latent_channels, "dim": dim, "num_heads": num_heads,
            "mlp_ratio": mlp_ratio, "encoder_depth": encoder_depth, "decoder_depth": decoder_depth,
            "attention": attention, "refine": refine,
        }  # fmt: skip
        super().__init__(PatchSize.of(stride), latent_channels, config)
        least = {"encoder_depth": (encoder_depth, 1), "decoder_depth": (decoder_depth, 1), "refine": (refine, 0)}
        for name, (value, least_value) in least.items():
            if value < least_value:
                raise SoraError(f"{name}={value} must be at least {least_value}")
        if num_heads < 1 or dim % num_heads:
            raise SoraError(f"dim={dim} does not divide into num_heads={num_heads}; choose a divisor of {dim}")
        axis_pairs(dim // num_heads, axes=3)  # refuses a head too narrow for three axes now
        pixels = 3 * self.stride.volume
        size = {"dim": dim, "num_heads": num_heads, "attention": attention, "mlp_ratio": mlp_ratio}
        self.encoder = Transformer(pixels, PosteriorHead(dim, latent_channels), depth=encoder_depth, **size)  # type: ignore[arg-type]
        self.decoder = Transformer(latent_channels, nn.Linear(dim, pixels), depth=decoder_depth, **size)  # type: ignore[arg-type]
        self.refine = Refine(refine) if refine else None
        self.facts = VAEFacts(
            first_frame_alone=self.encoder.causal,
            encoder_causal=self.encoder.causal,
            decoder_causal=self.decoder.causal,
        )

    def encode(self, video: Float[Tensor, "batch 3 frames height width"]) -> Posterior:
        grid = self._check_video(video)
        rows = self.encoder(patchify(rearrange(video, "b c t h w -> b t h w c"), self.stride), grid)
        mean, logvar = (_as_map(part, grid) for part in rows.chunk(2, dim=-1))
        return Posterior(mean, logvar.clamp(*LOGVAR_RANGE))

    def decode(self, latent: Float[Tensor, "batch channels t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        self._check_latent(latent)
        grid = TokenGrid(*latent.shape[2:])
        rows = self.decoder(rearrange(latent, "b c t h w -> b (t h w) c"), grid)
        video = rearrange(unpatchify(rows, grid, self.stride), "b t h w c -> b c t h w")
        return video if self.refine is None else self.refine(video)

    @property
    def last_layer(self) -> nn.Parameter:
        """What the adversarial loss is balanced at."""
        return self.decoder.output.weight  # type: ignore[return-value]


def _as_map(rows: Float[Tensor, "batch tokens channels"], grid: TokenGrid) -> Float[Tensor, "batch channels t h w"]:
    return rearrange(rows, "b (t h w) c -> b c t h w", t=grid.frames, h=grid.height).contiguous()
