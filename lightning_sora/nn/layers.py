"""Small layers that the networks share."""

from __future__ import annotations

from typing import NamedTuple

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn


class ZeroLinear(nn.Linear):
    """A linear layer that starts at zero: what it feeds begins as the identity."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Modulation(NamedTuple):
    """How a condition bends one residual branch; each ``[batch, tokens or 1, dim]``."""

    shift: Tensor
    scale: Tensor
    gate: Tensor


def normalize(x: Float[Tensor, "*batch dim"], eps: float = 1e-6) -> Float[Tensor, "*batch dim"]:
    """Layer normalisation without learned scale or shift: the modulation brings its own."""
    return F.layer_norm(x, x.shape[-1:], eps=eps)


def modulate(
    x: Float[Tensor, "batch tokens dim"],
    shift: Float[Tensor, "batch tokens_or_1 dim"],
    scale: Float[Tensor, "batch tokens_or_1 dim"],
    eps: float = 1e-6,
) -> Float[Tensor, "batch tokens dim"]:
    """Adaptive layer norm: ``normalize(x) * (1 + scale) + shift`` (DiT, arXiv:2212.09748, section 3.2)."""
    return normalize(x, eps) * (1 + scale) + shift


class GatedMLP(nn.Module):
    """SwiGLU: ``down(silu(gate(x)) * up(x))`` (Shazeer 2020, arXiv:2002.05202, equation 6).

    Args:
        dim: width of input and output.
        ratio: hidden width over ``dim``, rounded up to a multiple of 8, as tensor cores want it.
    """

    def __init__(self, dim: int, ratio: float) -> None:
        super().__init__()
        hidden = -(-int(dim * ratio) // 8) * 8
        self.gate = nn.Linear(dim, hidden, bias=False)
        self.up = nn.Linear(dim, hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Float[Tensor, "*batch dim"]) -> Float[Tensor, "*batch dim"]:
        return self.down(F.silu(self.gate(x)) * self.up(x))

    def flops(self, tokens: int) -> int:
        """Forward FLOPs, a multiplication and an addition counting as two."""
        return 6 * tokens * self.gate.in_features * self.gate.out_features
