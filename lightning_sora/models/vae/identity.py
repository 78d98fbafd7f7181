"""No compression: the latent is the pixels."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.models.facts import VAEFacts
from lightning_sora.models.vae.base import VAES, Posterior, VideoVAE
from lightning_sora.spacetime import PatchSize

LOGVAR = -30.0
"""The logarithm of a variance that is zero for every purpose, and finite."""


@VAES.register("identity")
class IdentityVAE(VideoVAE):
    """Stride 1, three latent channels, nothing learned: a diffusion transformer on it works on pixels."""

    facts = VAEFacts(chunk_exact=True, deterministic_posterior=True)

    def __init__(self) -> None:
        super().__init__(PatchSize(1, 1, 1), latent_channels=3, config={})

    def encode(self, video: Float[Tensor, "batch 3 frames height width"]) -> Posterior:
        self._check_video(video)
        return Posterior(video, torch.full_like(video, LOGVAR))

    def decode(self, latent: Float[Tensor, "batch channels t h w"]) -> Float[Tensor, "batch 3 frames height width"]:
        self._check_latent(latent)
        return latent
