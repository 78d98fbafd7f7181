"""LightningModules and callbacks: thin, over models, diffusion and metrics."""

from lightning_sora.lit.captioner import LitCaptioner
from lightning_sora.lit.dit import LitDiT
from lightning_sora.lit.expander import LitExpander
from lightning_sora.lit.module import LitModule
from lightning_sora.lit.vae import LitVAE

__all__ = ["LitCaptioner", "LitDiT", "LitExpander", "LitModule", "LitVAE"]
