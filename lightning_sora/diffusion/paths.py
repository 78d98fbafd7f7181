"""Objectives: what is added to the data, and what the network learns to say about it.

``t = 0`` is data and ``t = 1`` is noise: ``x_t = alpha(t) x_0 + sigma(t) noise``. The straight path
(rectified flow, Liu et al. 2022, arXiv:2209.03003, Eq. 1; flow matching, Lipman et al. 2022,
arXiv:2210.02747) has ``alpha = 1 - t``, ``sigma = t`` and velocity ``noise - x_0``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from lightning_sora.registry import Registry

Rows = Float[Tensor, "batch tokens dim"]
Times = Float[Tensor, "batch tokens_or_1 1"]


def interpolate(x_0: Rows, noise: Rows, t: Times) -> Rows:
    """The straight path's ``x_t = (1 - t) x_0 + t noise``."""
    return (1 - t) * x_0 + t * noise


class Objective(ABC):
    """What the network predicts on the straight path, and how to read ``x_0`` off it."""

    @abstractmethod
    def target(self, x_0: Rows, noise: Rows) -> Rows:
        """What the prediction is compared to by mean squared error."""

    @abstractmethod
    def x_0(self, prediction: Rows, x_t: Rows, t: Times) -> Rows:
        """The data that a prediction implies."""


OBJECTIVES: Registry[Objective] = Registry("objective")


@OBJECTIVES.register("velocity")
@dataclass(frozen=True)
class Velocity(Objective):
    """Predicts ``noise - x_0``, the direction of the straight path (Liu et al. 2022, Eq. 1)."""

    def target(self, x_0: Rows, noise: Rows) -> Rows:
        return noise - x_0

    def x_0(self, prediction: Rows, x_t: Rows, t: Times) -> Rows:
        return x_t - t * prediction


@OBJECTIVES.register("x")
@dataclass(frozen=True)
class Data(Objective):
    """Predicts ``x_0`` itself: the velocity loss weighted by ``t**2`` (Li and He 2025, arXiv:2511.13720)."""

    def target(self, x_0: Rows, noise: Rows) -> Rows:
        return x_0

    def x_0(self, prediction: Rows, x_t: Rows, t: Times) -> Rows:
        return prediction
