"""Rotary position embedding over any number of axes, from integer coordinates.

RoPE (Su et al. 2021, arXiv:2104.09864, equation 15), split over axes as in axial RoPE for vision
(Heo et al. 2024, arXiv:2403.13298, section 3.2): each axis owns a part of the pairs of a head and
turns them by its own coordinate, so that a query and a key meet through the difference of their
coordinates alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lightning_sora.errors import SoraError

Rope = Float[Tensor, "batch_or_1 tokens 1 pairs 2"]
"""The cosine and the sine of the angle by which each token turns each pair of a head."""

#: What to do with an axis that is ``s`` times as long as in training: the frequency of pair j of n is divided by
#: ``s ** exponents[j]``. "interpolate" brings all positions to the trained range (Chen et al. 2023,
#: arXiv:2306.15595, section 2.3). "ntk" raises theta to ``theta * s ** (n / (n - 1))`` (Peng et al. 2023,
#: arXiv:2309.00071, section 3.1): the slowest pair is slowed as much, the fastest not at all.
SCALINGS: dict[str, Callable[[int], Tensor]] = {
    "interpolate": torch.ones,
    "ntk": lambda pairs: torch.arange(pairs, dtype=torch.float32) / max(pairs - 1, 1),
}


class Stretch(NamedTuple):
    """How many times as long as in training the axes of clips are, and what is done about it.

    Attributes:
        scaling: one of ``SCALINGS``.
        factors: above 0, where 1 changes nothing; a row per clip, or per token.
    """

    scaling: str
    factors: Float[Tensor, "clips_or_tokens axes"]


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


def rotary(
    coordinates: Int[Tensor, "*batch tokens axes"],
    head_dim: int,
    theta: float = 100.0,
    stretch: Stretch | None = None,
) -> Rope:
    """The rotation of each token: cosine and sine of ``coordinate * frequency``.

    Args:
        coordinates: integers of any range; only differences matter. The leading axis, if any, is
            the batch.
        theta: an axis with n pairs turns pair j by ``theta ** (-j / n)`` per step. Axes of a video are
            tens of tokens long, hence 100 rather than the 10000 of text.
        stretch: of axes longer or shorter than in training, with a row per token, or one for all; None for none.

    Raises:
        SoraError: see :func:`axis_pairs`.
    """
    if coordinates.dim() == 2:
        coordinates = coordinates[None]
    angles = []
    for axis, pairs in enumerate(axis_pairs(head_dim, coordinates.shape[-1])):
        frequency = theta ** (-torch.arange(pairs, device=coordinates.device, dtype=torch.float32) / pairs)
        turns = coordinates[..., axis, None] * frequency
        if stretch is not None:
            exponents = SCALINGS[stretch.scaling](pairs).to(frequency)
            turns = turns / stretch.factors[..., axis, None] ** exponents
        angles.append(turns)
    angle = torch.cat(angles, dim=-1)[..., None, :]
    return torch.stack([angle.cos(), angle.sin()], dim=-1)


def rotate(x: Float[Tensor, "batch tokens heads head_dim"], rope: Rope) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Turns neighbouring pairs of ``x``, in the precision of ``rope``.

    Compiled, by real products, since Inductor does not fuse complex ones; otherwise by one complex product, which reads
    and writes ``x`` once and takes a sixth to an eighth of the time that real ones take on a CPU.
    """
    pairs = x.to(rope.dtype).unflatten(-1, (-1, 2))
    if torch.compiler.is_compiling():
        (a, b), (cos, sin) = pairs.unbind(-1), rope.unbind(-1)
        turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1)
    else:
        turned = torch.view_as_real(torch.view_as_complex(pairs) * torch.view_as_complex(rope))
    return turned.flatten(-2).type_as(x)
