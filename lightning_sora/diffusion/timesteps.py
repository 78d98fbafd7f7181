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


TIMESTEPS: Registry[TimestepSampler] = Registry("timestep sampler", name="timesteps")


@TIMESTEPS.register("uniform")
@dataclass(frozen=True)
class Uniform(TimestepSampler):
    """Every noise level alike."""

    def quantile(self, uniform: Clips) -> Clips:
        return uniform


@TIMESTEPS.register("logit_normal")
@dataclass(frozen=True)
class LogitNormal(TimestepSampler):
    """``sigmoid(mean + std * z)``: a negative mean dwells near the data (Esser et al. 2024, Eq. 19).

    Args:
        mean: of the normal variable, any number.
        std: its standard deviation, above 0.
    """

    mean: float = 0.0
    std: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.std <= 0:
            raise SoraError(f"std={self.std} must be positive")

    def quantile(self, uniform: Clips) -> Clips:
        z = torch.special.ndtri(uniform.double().clamp(1e-9, 1 - 1e-9))
        return torch.sigmoid(self.mean + self.std * z).to(uniform.dtype)


@TIMESTEPS.register("edm")
@dataclass(frozen=True)
class EDM(LogitNormal):
    """``log sigma`` normal (Karras et al. 2022, arXiv:2206.00364, section 5): with ``sigma = t / (1 - t)`` that is a
    logit-normal ``t``, at the paper's values."""

    mean: float = -1.2
    std: float = 1.2


@TIMESTEPS.register("cosine")
@dataclass(frozen=True)
class Cosine(TimestepSampler):
    """The levels of the cosine schedule (Nichol and Dhariwal 2021, arXiv:2102.09672, Eq. 17), of which
    ``sigma / alpha = tan(pi u / 2)`` (CosMap, Esser et al. 2024, section 3.1)."""

    def quantile(self, uniform: Clips) -> Clips:
        angle = uniform * (math.pi / 2)
        return torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))


@TIMESTEPS.register("mode")
@dataclass(frozen=True)
class Mode(TimestepSampler):
    """``1 - u - scale (cos^2(pi u / 2) - 1 + u)`` of a uniform ``u`` (Esser et al. 2024, arXiv:2403.03206, Eq. 20):
    a positive scale dwells in the middle, a negative one at both ends.

    Args:
        scale: from -1 to ``2 / (pi - 2)``, about 1.75, beyond which it is no distribution.
    """

    scale: float = 1.29

    def __post_init__(self) -> None:
        super().__post_init__()
        if not -1 <= self.scale <= 2 / (math.pi - 2):
            raise SoraError(f"scale={self.scale} must lie in [-1, {2 / (math.pi - 2):.3f}]")

    def quantile(self, uniform: Clips) -> Clips:
        u = 1 - uniform  # the published map falls
        return 1 - u - self.scale * (torch.cos(u * (math.pi / 2)) ** 2 - 1 + u)


def stratified(count: int) -> Float[Tensor, " count"]:
    """``count`` evenly spaced uniform numbers, the middles of equal strata."""
    return (torch.arange(count, dtype=torch.float64) + 0.5).div(count).float()
