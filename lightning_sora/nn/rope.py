"""Rotary position embedding over any number of axes, from integer coordinates.

RoPE (Su et al. 2021, arXiv:2104.09864, equation 15), split over axes as in axial RoPE for vision
(Heo et al. 2024, arXiv:2403.13298, section 3.2): each axis owns a part of the pairs of a head and
turns them by its own coordinate, so that a query and a key meet through the difference of their
coordinates alone.
"""

from __future__ import annotations

import torch
from jaxtyping import Complex, Float, Int
from torch import Tensor

from lightning_sora.errors import SoraError

Rope = Complex[Tensor, "batch_or_1 tokens 1 pairs"]


def axis_pairs(head_dim: int, axes: int) -> tuple[int, ...]:
    """How many pairs of a head each axis turns: equal shares, the first axis taking what is over.

    Raises:
        SoraError: ``head_dim`` is odd, or too small to give each axis a pair.
    """
    if head_dim % 2 or head_dim < 2 * axes:
        raise SoraError(
            f"head_dim={head_dim} cannot be rotated along {axes} axes: it must be even and at least {2 * axes}; "
            "choose dim and num_heads so that dim / num_heads is"
        )
    share = head_dim // 2 // axes
    return (head_dim // 2 - share * (axes - 1), *(share,) * (axes - 1))


def rotary(coordinates: Int[Tensor, "*batch tokens axes"], head_dim: int, theta: float = 100.0) -> Rope:
    """The rotation of each token: unit complex numbers ``exp(i * coordinate * frequency)``.

    Args:
        coordinates: integers of any range; only differences matter. The leading axis, if any, is
            the batch.
        theta: an axis with n pairs turns pair j by ``theta ** (-j / n)`` per step. Axes of a video are
            tens of tokens long, hence 100 rather than the 10000 of text.

    Raises:
        SoraError: see :func:`axis_pairs`.
    """
    if coordinates.dim() == 2:
        coordinates = coordinates[None]
    angles = []
    for axis, pairs in enumerate(axis_pairs(head_dim, coordinates.shape[-1])):
        frequency = theta ** (-torch.arange(pairs, device=coordinates.device, dtype=torch.float32) / pairs)
        angles.append(coordinates[..., axis, None] * frequency)
    angle = torch.cat(angles, dim=-1)[..., None, :]
    return torch.polar(torch.ones_like(angle), angle)


def rotate(x: Float[Tensor, "batch tokens heads head_dim"], rope: Rope) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Turns neighbouring pairs of ``x``: one complex product, in float32."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rope).flatten(-2).type_as(x)
