"""Video VAEs: pixels to latents and back."""

from lightning_sora.models.vae.base import VAES, Posterior, VideoVAE
from lightning_sora.models.vae.causal_conv import CausalConvVAE
from lightning_sora.models.vae.clips import ClipVAE
from lightning_sora.models.vae.identity import IdentityVAE
from lightning_sora.models.vae.of_diffusers import DiffusersVAE
from lightning_sora.models.vae.statistics import LatentStatistics
from lightning_sora.models.vae.vit import ViTVAE

__all__ = [
    "VAES",
    "CausalConvVAE",
    "ClipVAE",
    "DiffusersVAE",
    "IdentityVAE",
    "LatentStatistics",
    "Posterior",
    "ViTVAE",
    "VideoVAE",
]
