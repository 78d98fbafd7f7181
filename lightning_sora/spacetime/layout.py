"""TokenLayout: where the tokens of a batch are in spacetime.

A batch of equal grids is ``[batch, tokens, dim]``; a batch of mixed grids is packed into one row,
``[1, total, dim]``. Model code never asks which: it asks the layout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.spacetime.grid import TokenGrid

GroupKey = Callable[[Int[Tensor, "total 4"], Sequence[TokenGrid]], Int[Tensor, "total *keys"]]
"""Names the group of each token, given coordinates (clip, t, y, x) and the clips' grids."""


@dataclass(frozen=True)
class Groups:
    """A partition of the tokens of a batch, ready for attention.

    Attributes:
        order: flat token indices, group by group, groups of one length together.
        inverse: where each token stands in that order.
        segments: per distinct group length, the part of the order that it has, ``[groups, length]``.
        contiguous: the tokens lie in group order already, in groups of one length.
        ends: where each group starts when segments lie end to end, and the end: int32, as variable-length kernels
            want it.
    """

    order: Int[Tensor, " tokens"]
    inverse: Int[Tensor, " tokens"]
    segments: tuple[Int[Tensor, "_ _"], ...]
    contiguous: bool
    ends: Int[Tensor, " groups_plus_one"]

    @property
    def pairs(self) -> int:
        """Query-key pairs, for counting FLOPs."""
        return sum(s.shape[0] * s.shape[1] ** 2 for s in self.segments)

    @property
    def nbytes(self) -> int:
        return self.ends.nbytes + self.order.nbytes + self.inverse.nbytes

    def to(self, device: torch.device) -> Groups:
        order, inverse, ends = (x.to(device) for x in (self.order, self.inverse, self.ends))
        return Groups(order, inverse, _segments(order, [s.shape for s in self.segments]), self.contiguous, ends)


@dataclass(frozen=True)
class TokenLayout:
    """The grids of one batch.

    Attributes:
        grids: one per clip, in order.
        packed: whether the clips lie end to end in one row (they must, if grids differ).

    Example:
        >>> import lightning_sora as ls
        >>> ls.TokenLayout.uniform(ls.TokenGrid(5, 4, 4), clips=2).shape
        (2, 80)
        >>> ls.TokenLayout.pack([ls.TokenGrid(5, 4, 4), ls.TokenGrid(1, 8, 8)]).shape
        (1, 144)
    """

    grids: tuple[TokenGrid, ...]
    packed: bool = False
    _plans: dict[object, Groups] = field(default_factory=dict, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.grids:
            raise SoraError("a layout needs at least one grid")
        if not self.packed and len(set(self.grids)) > 1:
            raise SoraError(f"grids {sorted(set(self.grids))} differ; pack them: TokenLayout.pack(grids)")

    @classmethod
    def uniform(cls, grid: TokenGrid, clips: int) -> TokenLayout:
        return cls((grid,) * clips)

    @classmethod
    def pack(cls, grids: Sequence[TokenGrid]) -> TokenLayout:
        return cls(tuple(grids), packed=True)

    @property
    def clips(self) -> int:
        return len(self.grids)

    @property
    def total(self) -> int:
        """Tokens of all clips together."""
        return sum(grid.tokens for grid in self.grids)

    @property
    def shape(self) -> tuple[int, int]:
        """The leading axes of activations: (batch, tokens)."""
        return (1, self.total) if self.packed else (self.clips, self.grids[0].tokens)

    @property
    def lengths(self) -> tuple[int, ...]:
        return tuple(grid.tokens for grid in self.grids)

    def cumulative_lengths(self, device: torch.device | str = "cpu") -> Int[Tensor, " clips_plus_one"]:
        """Where each clip starts, and the end: int32, as variable-length kernels want it."""
        return torch.tensor([0, *self.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32).to(device)

    def coordinates(self, device: torch.device | str = "cpu") -> Int[Tensor, "total 4"]:
        """(clip, t, y, x) of every token, in order; int64."""
        return _coordinates(self.grids).to(device)

    def per_token(self, per_clip: Shaped[Tensor, clips * rest]) -> Shaped[Tensor, "batch tokens_or_1 *rest"]:
        """Lays out a value per clip so that it broadcasts against ``[batch, tokens, ...]``."""
        if not self.packed:
            return per_clip[:, None]
        lengths = torch.tensor(self.lengths, device=per_clip.device)
        return per_clip.repeat_interleave(lengths, dim=0, output_size=self.total)[None]

    def clip_mean(self, per_token: Float[Tensor, "batch tokens"]) -> Float[Tensor, " clips"]:
        """The mean over each clip's tokens: clips weigh the same, whatever their length."""
        if not self.packed:
            return per_token.mean(dim=1)
        return torch.stack([part.mean() for part in per_token[0].split(list(self.lengths))])

    def split(self, rows: Shaped[Tensor, "batch tokens *rest"]) -> list[Shaped[Tensor, _ * rest]]:
        """The rows of each clip."""
        if not self.packed:
            return list(rows.unbind(0))
        return list(rows[0].split(list(self.lengths)))

    def join(self, rows: Sequence[Shaped[Tensor, _ * rest]]) -> Shaped[Tensor, "batch tokens *rest"]:
        """The inverse of :meth:`split`."""
        return torch.cat(list(rows))[None] if self.packed else torch.stack(list(rows))

    def clip(self, index: int) -> TokenLayout:
        """The layout of one clip alone."""
        return TokenLayout((self.grids[index],))

    def groups(self, key: GroupKey, name: object, device: torch.device | str = "cpu") -> Groups:
        """The partition of tokens by ``key``, computed once per layout and ``name``.

        Args:
            name: identifies the key function with its options, for the cache.
        """
        cache_key = (name, str(device))
        if cache_key not in self._plans:
            self._plans[cache_key] = _partition(self, key).to(torch.device(device))
        return self._plans[cache_key]


@lru_cache(maxsize=256)
def _coordinates(grids: tuple[TokenGrid, ...]) -> Int[Tensor, "total 4"]:
    rows = []
    for index, grid in enumerate(grids):
        axes = torch.meshgrid(*(torch.arange(size) for size in grid), indexing="ij")
        rows.append(torch.stack([torch.full_like(axes[0], index), *axes], dim=-1).reshape(-1, 4))
    return torch.cat(rows)


def _partition(layout: TokenLayout, key: GroupKey) -> Groups:
    coordinates = layout.coordinates()
    keys = torch.cat([coordinates[:, :1], key(coordinates, layout.grids).reshape(layout.total, -1)], dim=1)
    _, group = torch.unique(keys, dim=0, return_inverse=True)
    order = torch.argsort(group, stable=True)
    counts = torch.bincount(group)
    parts = order.split(counts.tolist())
    by_length: dict[int, list[Tensor]] = {}
    for part in parts:
        by_length.setdefault(len(part), []).append(part)
    contiguous = len(by_length) == 1 and bool((order == torch.arange(layout.total)).all())
    shapes = [(len(rows), length) for length, rows in by_length.items()]
    lengths = torch.tensor([0, *(length for count, length in shapes for _ in range(count))])
    order = torch.cat([part for rows in by_length.values() for part in rows])
    ends = lengths.cumsum(0, dtype=torch.int32)
    return Groups(order, torch.argsort(order), _segments(order, shapes), contiguous, ends)


def _segments(order: Tensor, shapes: Sequence[tuple[int, ...]]) -> tuple[Int[Tensor, "_ _"], ...]:
    parts = order.split([count * length for count, length in shapes])
    return tuple(part.view(shape) for part, shape in zip(parts, shapes, strict=True))
