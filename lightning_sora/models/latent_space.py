"""LatentSpace: what diffusion works in, the latents of a frozen VAE cut into rows."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from lightning_sora.errors import SoraError
from lightning_sora.models.pixels import Clip, from_uint8, to_uint8
from lightning_sora.models.vae import VAES, VideoVAE
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenGrid, patchify, unpatchify
from lightning_sora.specs import Spec

log = logging.getLogger(__name__)


class LatentSpace(nn.Module, ABC):
    """A frozen VAE, and rows of its scaled latents: one per spacetime patch.

    Args:
        vae: frozen here.
        patch_size: latent positions per row (frames, height, width).

    Attributes:
        latent_dim: numbers per row.
        config: specs that build it, that of the VAE among them; None if it was made by hand.
    """

    config: Mapping[str, Any] | None = None

    def __init__(self, vae: VideoVAE, patch_size: PatchSize) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.latent_dim = self.patch_size.volume * vae.latent_channels
        self.vae = vae.requires_grad_(False).eval()
        self._vae_hash: str | None = None
        self._met = set[bool]()  # images, clips of several frames
        self._told = set[str]()  # what was warned of

    @property
    def patch(self) -> PatchSize:
        """Pixels per row."""
        return self.vae.stride * self.patch_size

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """Of the weights."""

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def vae_hash(self) -> str:
        """The frozen VAE's fingerprint."""
        if self._vae_hash is None:
            self._vae_hash = self.vae.fingerprint()
        return self._vae_hash

    @vae_hash.setter
    def vae_hash(self, value: str) -> None:
        # Of the weights that are about to be loaded.
        self._vae_hash = value

    def replace_vae(self, vae: VideoVAE) -> None:
        """Takes another VAE of the same latents, such as one with a better decoder.

        Raises:
            SoraError: its latents are others.
        """
        if differ := self.vae.latents_differ(vae):
            raise SoraError(
                f"the latents of VAE {vae.fingerprint()} are not those of {self.vae_hash}, on which this model was "
                f"trained: they differ in {', '.join(differ[:4])}; give one that was trained with latents_of that VAE"
            )
        before = self.vae.config
        self.vae = vae.to(self.device, self.dtype).requires_grad_(False).eval()
        self._vae_hash = None
        decoder = {name: vae.config[name] for name in vae.decoder_options if vae.config[name] != before[name]}
        if decoder and self.config is not None:
            spec = VAES.resolve(self.config["vae"])
            self.config = {**self.config, "vae": str(Spec(spec.name, {**spec.options, **decoder}))}

    def check_latents(self, vae_hash: str | None) -> None:
        """Raises SoraError for latents of another VAE."""
        if vae_hash != self.vae_hash:
            raise SoraError(
                f"latents of VAE {vae_hash} but this model's VAE is {self.vae_hash}; make the latents anew with this "
                "VAE (`lightning-sora data cache`)"
            )

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.vae.eval()
        return self

    def encode(self, batch: SpacetimeBatch) -> Float[Tensor, "batch tokens latent_dim"]:
        """What diffusion sees of a batch of pixels or of latents: a row of scaled latents per token.

        Raises:
            SoraError: latents of another VAE.
        """
        if batch.space == "latent":
            self.check_latents(batch.vae_hash)
            self._note_lengths(batch)
            return batch.patches.to(self.dtype)
        return batch.layout.join(self.encode_clips(batch))

    def encode_clips(self, batch: SpacetimeBatch) -> list[Float[Tensor, "tokens latent_dim"]]:
        """Rows of scaled latents of each clip of a batch of pixels, on its own grid.

        In the precision of the VAE's own weights, as a cache of latents is made.
        """
        self._note_lengths(batch)
        rows: dict[int, Tensor] = {}
        for members, part in batch.split_by_grid():
            rows |= zip(members, self.encode_videos(part.videos()), strict=True)
        return [rows[i] for i in range(len(batch))]

    @torch.no_grad()
    def encode_videos(self, videos: Sequence[Clip]) -> Float[Tensor, "clips tokens latent_dim"]:
        """Rows of scaled latents of videos of one size, uint8 [frames height width 3]."""
        with torch.autocast(self.device.type, enabled=False):
            latent = self.vae.encode_latent(from_uint8(videos, self.dtype))
        return patchify(rearrange(latent, "b c t h w -> b t h w c"), self.patch_size)

    def encode_given(self, videos: Sequence[Clip]) -> Float[Tensor, "clips tokens latent_dim"]:
        """Rows of videos of which a part is given, and the rest stands for what is to be made."""
        if otherwise := self.vae.facts.otherwise("first_frame_alone", "encoder_causal"):
            self._warn_once(f"of this VAE, {otherwise}: what is given is seen together with what fills the rest")
        return self.encode_videos(videos)

    def _note_lengths(self, batch: SpacetimeBatch) -> None:
        """Warns once where images and clips are mixed, and an image is not a clip of one frame."""
        self._met |= {grid.frames == 1 for grid in batch.layout.grids}
        if len(self._met) == 2 and (otherwise := self.vae.facts.otherwise("first_frame_alone")):
            self._warn_once(f"images and clips are mixed, and of this VAE, {otherwise}: the model learns two kinds")

    def _warn_once(self, words: str) -> None:
        if words not in self._told:
            self._told.add(words)
            log.warning("%s", words)

    def decode(self, rows: Float[Tensor, "clips tokens latent_dim"], grid: TokenGrid) -> list[Clip]:
        """Videos of rows on one grid, uint8 [frames height width 3]."""
        latent = rearrange(unpatchify(rows, grid, self.patch_size), "b t h w c -> b c t h w")
        return to_uint8(self.vae.decode_latent(latent.to(self.dtype)))
