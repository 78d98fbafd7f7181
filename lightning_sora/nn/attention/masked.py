"""Blocks that are a rule for pairs: which token of a clip sees which other, as a function of their coordinates."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_sora.nn.attention.base import AttentionBlock, Heads, TextKeys, with_text
from lightning_sora.nn.attention.blocks import attend_blocks
from lightning_sora.nn.attention.kernels import flex
from lightning_sora.nn.attention.tiled import attend_tiles
from lightning_sora.nn.attention.tiling import Coordinates, Plan, make_plan, seen_from, shared
from lightning_sora.spacetime import TokenGrid, TokenLayout


class MaskedBlock(AttentionBlock):
    """Softmax attention among pairs of tokens that satisfy a rule.

    A subclass implements ``visible`` alone. Tiles of neighbouring tokens are computed against the union of what they
    see, exactly: ``sdpa`` and ``matmul`` compute more pairs than :meth:`pairs` counts where tokens of a tile see
    different ones, and ``flex``, which leaves out empty blocks of a mask, likewise.

    Example:
        >>> import torch, lightning_sora as ls
        >>> class PastAndNear(ls.MaskedBlock):
        ...     def visible(self, queries, keys, grid):
        ...         (t, y, _), (s, v, _) = queries, keys
        ...         return (s <= t) & ((y - v).abs() <= 1)
        >>> block = PastAndNear(32, 2, layer=0, depth=1)
        >>> block(torch.randn(3, 32, 32), ls.TokenLayout.uniform(ls.TokenGrid(2, 4, 4), clips=3)).shape
        torch.Size([3, 32, 32])
    """

    kernels: ClassVar[tuple[str, ...]] = ("sdpa", "matmul", "flex")

    @abstractmethod
    def visible(self, queries: Coordinates, keys: Coordinates, grid: TokenGrid) -> Bool[Tensor, "*_"]:
        """Whether each query sees each key of its clip; every token must see itself.

        The rule is asked about whole clips and about boxes of tokens, and compiled into kernels: it works elementwise,
        by operators alone, without ``if`` or ``.item()``. It is given no clip, as clips never see each other.

        Args:
            queries, keys: ``(t, y, x)`` of both: tensors of integers, ``0 <= t < grid.frames`` and so on, of shapes
                that broadcast against each other, such as ``[queries, 1]`` and ``[1, keys]``.
            grid: frames, height and width of the clip, in tokens.

        Returns:
            booleans of the shape that queries and keys broadcast to, or of one that broadcasts to it.

        Example:
            A window that slides with the token:

            >>> import torch, lightning_sora as ls
            >>> class Sliding(ls.MaskedBlock):
            ...     def __init__(self, dim, num_heads, *, layer, depth, radius=1):
            ...         super().__init__(dim, num_heads, layer=layer, depth=depth)
            ...         self.radius = radius
            ...     def visible(self, queries, keys, grid):
            ...         near = (queries.t - keys.t).abs() <= self.radius
            ...         near = near & ((queries.y - keys.y).abs() <= self.radius)
            ...         return near & ((queries.x - keys.x).abs() <= self.radius)
            >>> block = Sliding(32, 2, layer=0, depth=1)
            >>> block.receptive_field(ls.TokenLayout.uniform(ls.TokenGrid(1, 1, 4), clips=1)).int()
            tensor([[1, 1, 0, 0],
                    [1, 1, 1, 0],
                    [0, 1, 1, 1],
                    [0, 0, 1, 1]], dtype=torch.int32)
        """

    def plan(self, grid: TokenGrid, device: torch.device | str = "cpu") -> Plan:
        """How the block is computed on a grid, made once for all layers of equal ``plan_name``."""
        if torch.device(device).type == "cpu":
            return shared((self.plan_name, grid), lambda: make_plan(self.visible, grid))
        return shared((self.plan_name, grid, str(device)), lambda: self.plan(grid).to(device))

    def attend(self, q: Heads, k: Heads, v: Heads, layout: TokenLayout, text: TextKeys | None = None) -> Heads:
        if not layout.packed:
            clips = torch.arange(layout.clips, device=q.device)
            return self._attend(q, k, v, layout.grids[0], text, clips)
        # Clips of one grid side by side.
        parts = [layout.split(x) for x in (q, k, v)]
        mixed: list[Tensor] = [q] * layout.clips
        for grid in dict.fromkeys(layout.grids):
            chosen = [i for i, other in enumerate(layout.grids) if other == grid]
            some_q, some_k, some_v = (torch.stack([part[i] for i in chosen]) for part in parts)
            clips = torch.tensor(chosen, device=q.device)
            for i, rows in zip(chosen, self._attend(some_q, some_k, some_v, grid, text, clips), strict=True):
                mixed[i] = rows
        return layout.join(mixed)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, grid: TokenGrid, text: TextKeys | None, clips: Int[Tensor, " batch"]
    ) -> Tensor:
        keys, values, mask = with_text(k, v, text, clips)
        words = None if mask is None else mask[:, k.shape[1] :]
        if self.kernel is flex:
            return attend_blocks(q, keys, values, self.visible, grid, self.plan_name, words)
        return attend_tiles(self.kernel, q, keys, values, self.plan(grid, q.device), words)

    def receptive_field(self, layout: TokenLayout) -> Bool[Tensor, "total total"]:
        fields = []
        for grid in layout.grids:
            seen = seen_from(self.visible, [range(n) for n in grid], grid)
            fields.append(seen.expand(*grid, *grid).reshape(grid.tokens, grid.tokens))
        return torch.block_diag(*fields).bool()

    def pairs(self, layout: TokenLayout) -> int:
        return sum(self.plan(grid).pairs for grid in layout.grids)
