"""A video-to-text captioner: spacetime patches in, text out.

Form and colour reach the decoder apart: the transformer over patches sees brightness and saturation alone, and a
second set of tokens tells each patch's hue. So that a colour and a shape that were never seen together cannot be
mistaken for a pair that was. (Sora's report and DALL-E 3, Betker et al. 2023, section 2, for what it is good for.)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lightning_sora.errors import SoraError
from lightning_sora.models.text_decoder import Memory, TextDecoder, Written
from lightning_sora.models.vocabulary import Vocabulary
from lightning_sora.nn.attention import create_attention, layer_specs
from lightning_sora.nn.attention.base import head_width
from lightning_sora.nn.layers import GatedMLP
from lightning_sora.nn.rope import Rope, axis_pairs, rotary
from lightning_sora.registry import Spec
from lightning_sora.spacetime import PatchSize, TokenLayout

#: Saturation above which a pixel has a hue to speak of.
COLOURED = 0.15


class EncoderBlock(nn.Module):
    """Self-attention from the registry, and a gated MLP; pre-norm."""

    def __init__(self, spec: Spec, dim: int, num_heads: int, *, layer: int, depth: int) -> None:
        super().__init__()
        self.attention = create_attention(spec, dim, num_heads, layer=layer, depth=depth)
        self.norm, self.mlp_norm = nn.LayerNorm(dim, bias=False), nn.LayerNorm(dim, bias=False)
        self.mlp = GatedMLP(dim, ratio=2.67)

    def forward(
        self, x: Float[Tensor, "batch tokens dim"], layout: TokenLayout, rope: Rope
    ) -> Float[Tensor, "batch tokens dim"]:
        x = x + self.attention(self.norm(x), layout, rope)
        return x + self.mlp(self.mlp_norm(x))


class Captioner(nn.Module):
    """Writes a caption for each clip of a batch, of one size or packed.

    Args:
        patch: pixels per row.
        vocabulary: see :meth:`Vocabulary.named`.
        dim, num_heads: of both transformers; ``dim / num_heads`` is even and at least 6.
        depth: layers of the encoder.
        decoder_depth: layers of the decoder.
        attention: spec of the encoder's self-attention, or a pattern over layers.

    Raises:
        SoraError: widths that do not divide, an unknown block or vocabulary.
    """

    def __init__(
        self,
        patch: PatchSize,
        *,
        vocabulary: str,
        dim: int,
        depth: int,
        decoder_depth: int,
        num_heads: int,
        attention: str | Sequence[str] = "full",
    ) -> None:
        super().__init__()
        self.patch, self.head_dim = patch, head_width(dim, num_heads)
        axis_pairs(self.head_dim, axes=3)
        self.vocabulary = Vocabulary.named(vocabulary)
        self.form = nn.Linear(2 * patch.volume, dim)
        self.hue = nn.Linear(4, dim)
        self.hue_mlp = GatedMLP(dim, ratio=2.67)
        self.blocks = nn.ModuleList(
            EncoderBlock(spec, dim, num_heads, layer=layer, depth=depth)
            for layer, spec in enumerate(layer_specs(attention, depth))
        )
        self.norm, self.hue_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.decoder = TextDecoder(len(self.vocabulary), dim=dim, depth=decoder_depth, num_heads=num_heads, memory=True)

    def look(self, rows: UInt8[Tensor, "batch tokens patch_dim"], layout: TokenLayout) -> Memory:
        """What the decoder sees of each clip: a token of form and a token of hue per patch."""
        if rows.shape[-1] != 3 * self.patch.volume:
            raise SoraError(
                f"rows of {rows.shape[-1]} values, but a patch of {list(self.patch)} has {3 * self.patch.volume}; set "
                f"data.patch to {list(self.patch)}"
            )
        pixels = rearrange(rows, "b n (p c) -> b n p c", c=3).to(self.form.weight.dtype) / 255
        value = pixels.amax(dim=-1)
        saturation = value - pixels.amin(dim=-1)
        x = self.form(torch.cat([value - 0.5, saturation], dim=-1))
        one = layout.coordinates(rows.device)[: layout.shape[1], 1:]
        rope = rotary(one, self.head_dim)
        for block in self.blocks:
            x = block(x, layout, rope)
        weight = (saturation - COLOURED).clamp(min=0)[..., None]
        mean = (pixels * weight).sum(dim=2) / (weight.sum(dim=2) + 1e-3)
        hue = self.hue(torch.cat([mean, weight.mean(dim=2)], dim=-1))
        hue = hue + self.hue_mlp(hue)
        clips = [
            torch.cat(pair) for pair in zip(layout.split(self.norm(x)), layout.split(self.hue_norm(hue)), strict=True)
        ]
        lengths = torch.tensor([len(clip) for clip in clips], device=rows.device)
        padded = pad_sequence(clips, batch_first=True)
        return Memory(padded, torch.arange(padded.shape[1], device=rows.device) < lengths[:, None])

    def tokens(self, captions: Sequence[str]) -> Int[Tensor, "clips tokens"]:
        """Captions between their marks, padded at the end."""
        words = self.vocabulary
        rows = [torch.tensor([words.bos, *words.encode(text), words.eos]) for text in captions]
        return pad_sequence(rows, batch_first=True, padding_value=words.pad).to(self.form.weight.device)

    def write(
        self,
        rows: UInt8[Tensor, "batch tokens patch_dim"],
        layout: TokenLayout,
        *,
        longest: int = 192,
        temperature: float = 0.0,
        generators: list[torch.Generator] | None = None,
    ) -> list[Written]:
        """A caption for each clip; see :meth:`TextDecoder.write`."""
        words = self.vocabulary
        return self.decoder.write(
            [[words.bos]] * layout.clips,
            self.look(rows, layout),
            end=words.eos,
            longest=longest,
            forbidden=(words.bos, words.pad, words.mask),
            temperature=temperature,
            generators=generators,
        )
