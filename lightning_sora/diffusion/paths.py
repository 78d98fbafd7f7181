"""Paths and objectives: what is added to the data, and what the network learns to say about it.

``t = 0`` is data and ``t = 1`` is noise. A path is ``alpha(t) x_0 + sigma(t) noise``; the straight one (rectified flow,
Liu et al. 2022, arXiv:2209.03003, Eq. 1; flow matching, Lipman et al. 2022, arXiv:2210.02747) has ``alpha = 1 - t``,
``sigma = t`` and velocity ``noise - x_0``.

Every path is parametrised by the *straight path's* noise level: ``sigma / alpha = t / (1 - t)``. Hence any path is
the straight one times ``alpha + sigma``, equal ``t`` is equal signal-to-noise ratio whatever the objective, samplers
and timestep distributions serve all objectives, and only the network's input is rescaled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry

Rows = Float[Tensor, "batch tokens dim"]
Times = Float[Tensor, "batch tokens_or_1 1"]
Levels = Float[Tensor, "*times"]

#: Divisions by ``t`` or ``1 - t`` keep this far from zero.
SMALL = 1e-6


def interpolate(x_0: Rows, noise: Rows, t: Times) -> Rows:
    """The straight path's ``x_t = (1 - t) x_0 + t noise``."""
    return (1 - t) * x_0 + t * noise


def log_snr(t: Levels) -> Levels:
    """``log(alpha^2 / sigma^2)``, the same on every path."""
    return 2 * (torch.log((1 - t).clamp(min=SMALL)) - torch.log(t.clamp(min=SMALL)))


class Objective(ABC):
    """What the network is fed and predicts, and how to read ``x_0`` off it."""

    @abstractmethod
    def input(self, x_t: Rows, t: Times) -> Rows:
        """What the network is fed: the straight path's ``x_t``, brought to the objective's own path."""

    @abstractmethod
    def target(self, x_0: Rows, noise: Rows, t: Times) -> Rows:
        """What the prediction is compared to by mean squared error."""

    @abstractmethod
    def x_0(self, prediction: Rows, x_t: Rows, t: Times) -> Rows:
        """The data that a prediction implies, from the straight path's ``x_t``."""

    @abstractmethod
    def error_gain(self, t: Levels) -> Levels:
        """The squared error of the prediction over the squared error of the ``x_0`` that it implies."""


OBJECTIVES: Registry[Objective] = Registry("objective", name="objective")


class _Straight(Objective):
    def input(self, x_t: Rows, t: Times) -> Rows:
        return x_t


@OBJECTIVES.register("velocity")
@dataclass(frozen=True)
class Velocity(_Straight):
    """Predicts ``noise - x_0``, the direction of the straight path (Liu et al. 2022, Eq. 1)."""

    def target(self, x_0: Rows, noise: Rows, t: Times) -> Rows:
        return noise - x_0

    def x_0(self, prediction: Rows, x_t: Rows, t: Times) -> Rows:
        return x_t - t * prediction

    def error_gain(self, t: Levels) -> Levels:
        return t.clamp(min=SMALL) ** -2


@OBJECTIVES.register("x")
@dataclass(frozen=True)
class Data(_Straight):
    """Predicts ``x_0`` itself: the velocity loss weighted by ``t**2`` (Li and He 2025, arXiv:2511.13720)."""

    def target(self, x_0: Rows, noise: Rows, t: Times) -> Rows:
        return x_0

    def x_0(self, prediction: Rows, x_t: Rows, t: Times) -> Rows:
        return prediction

    def error_gain(self, t: Levels) -> Levels:
        return torch.ones_like(t)


def variance_preserving(t: Levels) -> tuple[Levels, Levels]:
    """``alpha`` and ``sigma`` with ``alpha^2 + sigma^2 = 1`` and ``sigma / alpha = t / (1 - t)``."""
    norm = ((1 - t) ** 2 + t**2).sqrt()
    return (1 - t) / norm, t / norm


class _VariancePreserving(Objective):
    def input(self, x_t: Rows, t: Times) -> Rows:
        alpha, sigma = variance_preserving(t)
        return (alpha + sigma) * x_t


@OBJECTIVES.register("eps")
@dataclass(frozen=True)
class Noise(_VariancePreserving):
    """Predicts the noise of the variance-preserving path (Ho et al. 2020, arXiv:2006.11239, Eq. 14).

    At ``t = 1`` the input is the noise, so that nothing can be read off the prediction there: ``x_0`` is then
    what it is at the largest ``alpha`` below.
    """

    def target(self, x_0: Rows, noise: Rows, t: Times) -> Rows:
        return noise

    def x_0(self, prediction: Rows, x_t: Rows, t: Times) -> Rows:
        # x_t - t noise is (1 - t) x_0 on the straight path.
        return (x_t - t * prediction) / (1 - t).clamp(min=NOISE_FLOOR)

    def error_gain(self, t: Levels) -> Levels:
        return ((1 - t) / t.clamp(min=SMALL)) ** 2


#: ``1 - t`` below which a predicted noise says nothing of the data: a thousandth, as in 1,000-step schedules.
NOISE_FLOOR = 1e-3


@OBJECTIVES.register("v")
@dataclass(frozen=True)
class AngularVelocity(_VariancePreserving):
    """Predicts ``alpha noise - sigma x_0`` of the variance-preserving path (Salimans and Ho 2022,
    arXiv:2202.00512, appendix D)."""

    def target(self, x_0: Rows, noise: Rows, t: Times) -> Rows:
        alpha, sigma = variance_preserving(t)
        return alpha * noise - sigma * x_0

    def x_0(self, prediction: Rows, x_t: Rows, t: Times) -> Rows:
        alpha, sigma = variance_preserving(t)
        return alpha * self.input(x_t, t) - sigma * prediction

    def error_gain(self, t: Levels) -> Levels:
        return variance_preserving(t)[1].clamp(min=SMALL) ** -2


@OBJECTIVES.register("edm")
@dataclass(frozen=True)
class Preconditioned(Objective):
    """EDM's preconditioning (Karras et al. 2022, arXiv:2206.00364, Table 1): predicts
    ``F = (x_0 - c_skip x) / c_out``, under the paper's own weighting ``1 / c_out^2``.

    With ``sigma_data = 1`` it is ``v`` with the opposite sign.

    Args:
        sigma_data: standard deviation of the data.
    """

    sigma_data: float = 1.0

    def __post_init__(self) -> None:
        if self.sigma_data <= 0:
            raise SoraError(f"sigma_data={self.sigma_data} must be positive")

    def _norm(self, t: Levels) -> Levels:
        """``(1 - t) sqrt(sigma^2 + sigma_data^2)`` with ``sigma = t / (1 - t)``: finite at ``t = 1``."""
        return (t**2 + (self.sigma_data * (1 - t)) ** 2).sqrt()

    def input(self, x_t: Rows, t: Times) -> Rows:
        return x_t / self._norm(t)  # c_in (x_0 + sigma noise)

    def _out(self, t: Levels) -> Levels:
        return self.sigma_data * t / self._norm(t)  # c_out

    def _skipped(self, x_t: Rows, t: Times) -> Rows:
        return self.sigma_data**2 * (1 - t) * x_t / self._norm(t) ** 2  # c_skip (x_0 + sigma noise)

    def target(self, x_0: Rows, noise: Rows, t: Times) -> Rows:
        # (x_0 - c_skip (x_0 + sigma noise)) / c_out, with t cancelled so that it is finite at t = 0.
        return (t * x_0 - self.sigma_data**2 * (1 - t) * noise) / (self.sigma_data * self._norm(t))

    def x_0(self, prediction: Rows, x_t: Rows, t: Times) -> Rows:
        return self._skipped(x_t, t) + self._out(t) * prediction

    def error_gain(self, t: Levels) -> Levels:
        return self._out(t).clamp(min=SMALL) ** -2
