"""Timestep samplers: where on the path to train.

Each maps a uniform number to a timestep (an inverse distribution function), so that the draw itself
stays a keyed, per-clip one, and stratified validation uses the same code with evenly spaced numbers.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry

Clips = Float[Tensor, " clips"]


def shift_time(t: Float[Tensor, "*shape"], factor: float) -> Float[Tensor, "*shape"]:
    """Moves times towards noise: ``s t / (1 + (s - 1) t)`` (Esser et al. 2024, arXiv:2403.03206, Eq. 23)."""
    return factor * t / (1 + (factor - 1) * t)


def size_shift(tokens: int, base_tokens: int) -> float:
    """The shift that keeps the signal-to-noise ratio of a whole clip: ``sqrt(tokens / base_tokens)`` (ibid.)."""
    return math.sqrt(tokens / base_tokens)


@dataclass(frozen=True)
class TimestepSampler(ABC):
    """A distribution of training timesteps on (0, 1).

    Attributes:
        base_tokens: clips with more tokens than this train at higher noise, with fewer at lower;
            None trains all sizes alike.
    """

    base_tokens: int | None = None

    def __post_init__(self) -> None:
        if self.base_tokens is not None and self.base_tokens < 1:
            raise SoraError(f"base_tokens={self.base_tokens} must be at least 1, or None for no shift")

    @abstractmethod
    def quantile(self, uniform: Clips) -> Clips:
        """The timestep below which a fraction ``uniform`` of the draws lies."""

    def __call__(self, uniform: Clips, tokens: Sequence[int]) -> Clips:
        """Timesteps for clips of these token counts, from uniform numbers in [0, 1)."""
        t = self.quantile(uniform)
        if self.base_tokens is None:
            return t
        factors = torch.tensor([size_shift(n, self.base_tokens) for n in tokens], dtype=t.dtype, device=t.device)
        return factors * t / (1 + (factors - 1) * t)


TIMESTEPS: Registry[TimestepSampler] = Registry("timestep sampler")


@TIMESTEPS.register("uniform")
@dataclass(frozen=True)
class Uniform(TimestepSampler):
    """Every noise level alike."""

    def quantile(self, uniform: Clips) -> Clips:
        return uniform


@TIMESTEPS.register("logit_normal")
@dataclass(frozen=True)
class LogitNormal(TimestepSampler):
    """``sigmoid(mean + std * z)``: a negative mean dwells near the data (Esser et al. 2024, Eq. 19)."""

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std <= 0:
            raise SoraError(f"std={self.std} must be positive")

    def quantile(self, uniform: Clips) -> Clips:
        z = torch.special.ndtri(uniform.double().clamp(1e-9, 1 - 1e-9))
        return torch.sigmoid(self.mean + self.std * z).to(uniform.dtype)


def stratified(count: int) -> Float[Tensor, " count"]:
    """``count`` evenly spaced uniform numbers, the middles of equal strata."""
    return (torch.arange(count, dtype=torch.float64) + 0.5).div(count).float()
