"""Blocks that are a rule for pairs: which token of a clip sees which other, as a function of their coordinates."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_sora.nn.attention.base import AttentionBlock, Heads, TextKeys, with_text
from lightning_sora.spacetime import TokenGrid, TokenLayout

#: Up to this fraction of distinct key sets among the tokens, tokens that share one are computed together.
DISTINCT_FRACTION = 0.25
PLANS_KEPT = 64


@dataclass(frozen=True)
class Plan:
    """How one grid is computed.

    Attributes:
        visible: which token (row) sees which (column).
        segments: exact pieces: token indices of queries and of the keys that all of them see; empty if key sets are
            nearly all different, and the mask is used as it is.
    """

    visible: Bool[Tensor, "tokens tokens"]
    segments: tuple[tuple[Int[Tensor, "_ _"], Int[Tensor, "_ _"]], ...]

    @property
    def pairs(self) -> int:
        return int(self.visible.sum())


class MaskedBlock(AttentionBlock):
    """Softmax attention among pairs of tokens that satisfy a rule.

    A subclass implements ``visible`` alone. Tokens that see the same set of tokens, such as those of one tile or
    of one frame, are computed together and exactly; where nearly every token has a set of its own, the kernel gets
    a dense mask: then ``sdpa`` and ``matmul`` compute more pairs than :meth:`pairs` counts, and ``flex``, which leaves
    out empty blocks, about as many.
    """

    kernels: ClassVar[tuple[str, ...]] = ("sdpa", "matmul", "flex")

    @abstractmethod
    def visible(
        self, queries: Int[Tensor, "queries 1 3"], keys: Int[Tensor, "1 keys 3"], grid: TokenGrid
    ) -> Bool[Tensor, "queries keys"]:
        """Whether each query sees each key, given the (t, y, x) of both; every token sees itself."""

    def plan(self, grid: TokenGrid, device: torch.device | str = "cpu") -> Plan:
        """Made once per grid and device."""
        plans: dict[object, Plan] = self.__dict__.setdefault("_plans", {})
        key = (grid, str(device))
        if key not in plans:
            if len(plans) >= PLANS_KEPT:
                plans.pop(next(iter(plans)))
            plans[key] = _on(self._make(grid), device)
        return plans[key]

    def _make(self, grid: TokenGrid) -> Plan:
        at = TokenLayout((grid,)).coordinates()[:, 1:]
        visible = self.visible(at[:, None], at[None], grid)
        rows, which = torch.unique(visible, dim=0, return_inverse=True)
        if len(rows) > max(1, DISTINCT_FRACTION * grid.tokens):
            return Plan(visible, ())
        members: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for index, row in enumerate(rows):
            queries, keys = (which == index).nonzero()[:, 0], row.nonzero()[:, 0]
            members.setdefault((len(queries), len(keys)), []).append((queries, keys))
        return Plan(
            visible,
            tuple((torch.stack([q for q, _ in m]), torch.stack([k for _, k in m])) for m in members.values()),
        )

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_plans"}

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
        plan = self.plan(grid, q.device)
        if not plan.segments:
            keys, values, mask = with_text(k, v, text, clips)
            extra = keys.shape[1] - k.shape[1]
            pattern = torch.nn.functional.pad(plan.visible, (0, extra), value=True) if extra else plan.visible
            return self.kernel(q, keys, values, mask, pattern)
        order, mixed = [], []
        for queries, keys in plan.segments:
            rows = clips.repeat_interleave(len(queries))
            some_k, some_v, mask = with_text(_take(k, keys), _take(v, keys), text, rows)
            result = self.kernel(_take(q, queries), some_k, some_v, mask)
            mixed.append(result.reshape(len(q), -1, *q.shape[2:]))
            order.append(queries.flatten())
        together = torch.cat(mixed, dim=1)
        return torch.empty_like(together).index_copy(1, torch.cat(order), together)

    def receptive_field(self, layout: TokenLayout) -> Bool[Tensor, "total total"]:
        return torch.block_diag(*(self.plan(grid).visible for grid in layout.grids)).bool()

    def pairs(self, layout: TokenLayout) -> int:
        return sum(self.plan(grid).pairs for grid in layout.grids)


def _take(x: Tensor, indices: Int[Tensor, "groups length"]) -> Tensor:
    """[batch * groups, length, heads, head_dim], the groups of a clip side by side."""
    return x.index_select(1, indices.flatten()).reshape(-1, indices.shape[1], *x.shape[2:])


def _on(plan: Plan, device: torch.device | str) -> Plan:
    return Plan(plan.visible.to(device), tuple((q.to(device), k.to(device)) for q, k in plan.segments))
