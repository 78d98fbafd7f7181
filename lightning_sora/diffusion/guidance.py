"""Guidance: how strongly the prompt pulls."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Rows = Float[Tensor, "batch tokens dim"]


def classifier_free(conditional: Rows, unconditional: Rows, scale: float) -> Rows:
    """``unconditional + scale * (conditional - unconditional)`` (Ho and Salimans 2022, arXiv:2207.12598, Eq. 6).

    ``scale = 1`` is no guidance. At a given ``x_t`` it is the same on velocities and on ``x_0``,
    which depend linearly on each other.
    """
    return unconditional + scale * (conditional - unconditional)
