"""Denoisers: the transformers that predict what a diffusion objective asks for."""

from lightning_sora.models.denoisers.base import DENOISERS, Condition, Denoiser, DenoiserFacts
from lightning_sora.models.denoisers.dit import DiT, DiTBlock
from lightning_sora.models.denoisers.host import DiffusersDenoiser
from lightning_sora.models.denoisers.wan import WanDiT

__all__ = ["DENOISERS", "Condition", "Denoiser", "DenoiserFacts", "DiT", "DiTBlock", "DiffusersDenoiser", "WanDiT"]
