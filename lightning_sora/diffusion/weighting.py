"""Weightings: how much each noise level counts in the loss.

Each gives the weight of the objective's *own* squared error. One that is published for another objective is
converted by :meth:`Objective.error_gain`, so that it means the same whatever the network predicts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.diffusion.paths import Noise, Objective, log_snr
from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry

Levels = Float[Tensor, "*times"]


class Weighting(ABC):
    """A weight over noise levels."""

    @abstractmethod
    def __call__(self, t: Levels, objective: Objective) -> Levels:
        """The weight of the objective's squared error at ``t``."""


WEIGHTINGS: Registry[Weighting] = Registry("loss weighting", name="weighting")


@WEIGHTINGS.register("uniform")
@dataclass(frozen=True)
class UniformWeighting(Weighting):
    """The objective's own error, as it is."""

    def __call__(self, t: Levels, objective: Objective) -> Levels:
        return torch.ones_like(t)


@WEIGHTINGS.register("min_snr")
@dataclass(frozen=True)
class MinSNR(Weighting):
    """``min(SNR, gamma)`` on the error of ``x_0`` (Hang et al. 2023, arXiv:2303.09556, section 3.4).

    Args:
        gamma: levels with a higher signal-to-noise ratio count no more than this.
    """

    gamma: float = 5.0

    def __post_init__(self) -> None:
        if self.gamma <= 0:
            raise SoraError(f"gamma={self.gamma} must be positive")

    def __call__(self, t: Levels, objective: Objective) -> Levels:
        return log_snr(t).exp().clamp(max=self.gamma) / objective.error_gain(t)


@WEIGHTINGS.register("sigmoid")
@dataclass(frozen=True)
class Sigmoid(Weighting):
    """``sigmoid(bias - log SNR)`` on the error of the noise (Hoogeboom et al. 2024, arXiv:2410.19324, section 3.1;
    Kingma and Gao 2023, arXiv:2303.00848).

    Args:
        bias: larger counts cleaner levels more.
    """

    bias: float = -1.0

    def __call__(self, t: Levels, objective: Objective) -> Levels:
        return torch.sigmoid(self.bias - log_snr(t)) * Noise().error_gain(t) / objective.error_gain(t)
