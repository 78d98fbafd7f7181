"""Rules for pairs as block masks of FlexAttention, which leaves out the blocks that are empty."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_sora.nn.attention.kernels import flex_under
from lightning_sora.nn.attention.tiling import Coordinates, Rule, shared
from lightning_sora.spacetime import TokenGrid


@dataclass(frozen=True)
class Blocks:
    """A block mask that is kept."""

    mask: Any

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in vars(self.mask).values() if isinstance(x, Tensor))


def attend_blocks(
    q: Float[Tensor, "batch tokens heads head_dim"],
    k: Float[Tensor, "batch tokens_and_text heads head_dim"],
    v: Float[Tensor, "batch tokens_and_text heads head_dim"],
    rule: Rule,
    grid: TokenGrid,
    name: object,
    text: Bool[Tensor, "batch text_tokens"] | None = None,
) -> Float[Tensor, "batch tokens heads head_dim"]:
    """Attends by a rule on one grid, which all rows have.

    Args:
        name: of the rule: its block mask is made once per name, grid, length of text and device.
        text: what every query sees of the keys behind those of the tokens.
    """
    blocks = shared(
        (name, grid, "blocks", k.shape[1], str(q.device)), lambda: _blocks(rule, grid, k.shape[1], q.device)
    ).mask
    if text is not None:
        # Which blocks there are does not change with the text, only what is seen within them.
        blocks, tokens = copy.copy(blocks), grid.tokens
        blocks.mask_mod = lambda b, h, query, key: torch.where(
            key < tokens, _sees(rule, query, key, grid), text[b, (key - tokens).clamp(min=0)]
        )
    return flex_under(q, k, v, blocks)


def _blocks(rule: Rule, grid: TokenGrid, keys: int, device: torch.device) -> Blocks:
    from torch.nn.attention.flex_attention import create_block_mask

    # Lambdas, whose arguments torch counts. Text is hidden from every other query here, so that its blocks are neither
    # empty nor taken as seen whole.
    seen: Any = lambda b, h, query, key: _sees(rule, query, key, grid)  # noqa: E731
    tokens = grid.tokens
    if keys > tokens:
        seen = lambda b, h, query, key: torch.where(  # noqa: E731
            key < tokens, _sees(rule, query, key, grid), query % 2 == 0
        )
    # Compiled, the mask of all pairs is never in memory.
    create: Any = torch.compile(create_block_mask) if device.type == "cuda" else create_block_mask
    return Blocks(create(seen, None, None, tokens, keys, device=device))


@no_type_check
def _sees(rule: Rule, query: Tensor, key: Tensor, grid: TokenGrid) -> Tensor:
    return rule(Coordinates.of(query, grid), Coordinates.of(key, grid), grid)
