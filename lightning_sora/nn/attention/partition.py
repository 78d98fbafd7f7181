"""Blocks that are a partition: tokens attend within groups, and a group is a function of coordinates."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_sora.nn.attention.base import AttentionBlock, Heads, TextKeys, with_text
from lightning_sora.nn.attention.kernels import varlen
from lightning_sora.nn.attention.segments import gather, scatter, segment_clips, varlen_groups
from lightning_sora.nn.attention.tiling import shared
from lightning_sora.spacetime import Groups, TokenGrid, TokenLayout


class PartitionBlock(AttentionBlock):
    """Attention within the groups of a partition of the tokens.

    A subclass implements ``group`` alone. Tokens are gathered by group, one kernel call is made per
    distinct group length (by ``varlen`` one for all), and the results are put back in token order.

    Example:
        >>> import torch, lightning_sora as ls
        >>> class Slabs(ls.PartitionBlock):
        ...     def group(self, coordinates, grids):  # (clip, t, y, x) of every token
        ...         return coordinates[:, 1:2] // 2
        >>> block = Slabs(32, 2, layer=0, depth=1)
        >>> block(torch.randn(3, 64, 32), ls.TokenLayout.uniform(ls.TokenGrid(4, 4, 4), clips=3)).shape
        torch.Size([3, 64, 32])
    """

    @abstractmethod
    def group(self, coordinates: Int[Tensor, "total 4"], grids: Sequence[TokenGrid]) -> Int[Tensor, "total keys"]:
        """Names the group of each token within its clip.

        Args:
            coordinates: (clip, t, y, x) of each token.
            grids: of the clips.
        """

    def groups(self, layout: TokenLayout, device: torch.device | str = "cpu") -> Groups:
        """The groups within one clip of a uniform layout, or within all clips of a packed one."""
        if layout.packed:
            return layout.groups(self.group, self.plan_name, device)
        one = layout.clip(0)
        return shared((self.plan_name, one.grids, str(device)), lambda: one.groups(self.group, self.plan_name, device))

    def attend(self, q: Heads, k: Heads, v: Heads, layout: TokenLayout, text: TextKeys | None = None) -> Heads:
        groups = self.groups(layout, q.device)
        if self.kernel is varlen and text is None:
            return varlen_groups(q, k, v, groups)
        clips = segment_clips(groups, layout, q.device) if text is not None else [None] * len(groups.segments)
        mixed = []
        for queries, keys, values, clip in zip(
            gather(q, groups), gather(k, groups), gather(v, groups), clips, strict=True
        ):
            keys, values, mask = with_text(keys, values, text, clip)
            mixed.append(self.kernel(queries, keys, values, mask))
        return scatter(mixed, groups, layout.shape)

    def receptive_field(self, layout: TokenLayout) -> Bool[Tensor, "total total"]:
        coordinates = layout.coordinates()
        keys = torch.cat([coordinates[:, :1], self.group(coordinates, layout.grids).reshape(layout.total, -1)], dim=1)
        return (keys[:, None] == keys[None]).all(dim=-1)

    def pairs(self, layout: TokenLayout) -> int:
        return self.groups(layout).pairs * (1 if layout.packed else layout.clips)
