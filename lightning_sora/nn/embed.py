"""Embeddings of conditions."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


def sinusoidal(t: Float[Tensor, "*shape"], dim: int, period: float = 10_000.0) -> Float[Tensor, "*shape dim"]:
    """Cosines and sines of ``1000 * t`` at ``dim // 2`` frequencies from 1 down to about ``1 / period``.

    The factor carries t in [0, 1] to the range of the thousand steps for which the frequencies
    were chosen (Ho et al. 2020, arXiv:2006.11239; Peebles & Xie 2022, arXiv:2212.09748).
    """
    half = dim // 2
    frequencies = torch.exp(torch.arange(half, device=t.device, dtype=torch.float32) * (-math.log(period) / half))
    angles = 1000.0 * t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepEmbedding(nn.Module):
    """Sinusoids of t through a two-layer perceptron, to width ``dim``."""

    frequencies = 256

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.mlp = nn.Sequential(nn.Linear(self.frequencies, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape dim"]:
        """Embeds timesteps in [0, 1], where 0 is data and 1 is noise."""
        return self.mlp(sinusoidal(t, self.frequencies).type_as(t))

    def flops(self, timesteps: int) -> int:
        return 2 * timesteps * self.dim * (self.frequencies + self.dim)
