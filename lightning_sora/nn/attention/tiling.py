"""Tiles of queries and the keys that any of them sees: how a rule for pairs of tokens is computed without all pairs.

Queries that lie near each other in spacetime mostly see the same keys. A tile is a box of queries, computed against the
union of their keys; within it, a pattern leaves out the pairs that the rule does not hold for, if there are any. Tiles
of one pattern are computed together.
"""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from typing import NamedTuple, Protocol, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_sora.spacetime import TokenGrid

Box = tuple[int, int, int]


class Coordinates(NamedTuple):
    """Where tokens are: integers of any shape, alike or such that they broadcast."""

    t: Int[Tensor, "*_"]
    y: Int[Tensor, "*_"]
    x: Int[Tensor, "*_"]

    @staticmethod
    def of(index: Int[Tensor, "*_"], grid: TokenGrid) -> Coordinates:
        """Of tokens, given by their places in reading order."""
        frame = grid.height * grid.width
        return Coordinates(index // frame, index % frame // grid.width, index % grid.width)


Rule = Callable[[Coordinates, Coordinates, TokenGrid], Bool[Tensor, "*_"]]
"""Whether each query sees each key, for coordinates that broadcast against each other."""

#: What a key of a tile costs beside its scores, in queries: gathering it, and starting on it. Measured on a CPU.
KEY_COST = 64
#: Larger tiles win nothing.
MOST_QUERIES = 1024
#: Where tiles are sized up, as parts of each axis: in the middle, in a corner, and between them.
SAMPLES = ((0.5, 0.5, 0.5), (0.0, 0.0, 0.0), (0.25, 0.75, 0.25))


class Part(NamedTuple):
    """Tiles of one pattern: how many, of how many queries and keys each, and whether a pattern leaves pairs out."""

    tiles: int
    queries: int
    keys: int
    masked: bool


@dataclass(frozen=True)
class Plan:
    """How a rule is computed on one grid.

    Attributes:
        parts: what the indices below hold, part after part.
        queries: token indices, ``tiles x queries`` of each part; every token once.
        keys: token indices in rising order within each tile, ``tiles x keys`` of each part.
        patterns: which query of a tile sees which of its keys, ``queries x keys`` of each part that is masked.
        pairs: how many pairs the rule holds for.
    """

    parts: tuple[Part, ...]
    queries: Int[Tensor, " tokens"]
    keys: Int[Tensor, " _"]
    patterns: Bool[Tensor, " _"]
    pairs: int

    @property
    def computed(self) -> int:
        """How many pairs a kernel computes."""
        return sum(part.tiles * part.queries * part.keys for part in self.parts)

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in (self.queries, self.keys, self.patterns))

    def to(self, device: torch.device | str) -> Plan:
        moved = (x.to(device) for x in (self.queries, self.keys, self.patterns))
        return Plan(self.parts, *moved, self.pairs)

    def pieces(self) -> Iterator[tuple[Int[Tensor, "tiles _"], Int[Tensor, "tiles _"], Bool[Tensor, "_ _"] | None]]:
        """Queries, keys and pattern of each part."""
        return pieces(self.parts, self.queries, self.keys, self.patterns)


def pieces(
    parts: tuple[Part, ...], queries: Tensor, keys: Tensor, patterns: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """What :meth:`Plan.pieces` gives, of a plan's tensors."""
    some_queries = queries.split([part.tiles * part.queries for part in parts])
    some_keys = keys.split([part.tiles * part.keys for part in parts])
    some_patterns = patterns.split([part.queries * part.keys if part.masked else 0 for part in parts])
    for part, q, k, pattern in zip(parts, some_queries, some_keys, some_patterns, strict=True):
        shaped = pattern.view(part.queries, part.keys) if part.masked else None
        yield q.view(part.tiles, part.queries), k.view(part.tiles, part.keys), shaped


def make_plan(rule: Rule, grid: TokenGrid) -> Plan:
    """Plans tile by tile: no more than ``MOST_QUERIES x tokens`` pairs are looked at together."""
    size = _box_size(rule, grid)
    index = torch.arange(grid.tokens).view(*grid)
    alike: dict[object, list[tuple[Tensor, Tensor, Tensor]]] = {}
    pairs = 0
    for low in itertools.product(*(range(0, n, step) for n, step in zip(grid, size, strict=True))):
        queries = index[tuple(slice(start, start + step) for start, step in zip(low, size, strict=True))]
        seen = seen_from(rule, low, _box(queries.shape), grid)
        keys = _union(seen, grid).nonzero()[:, 0]
        shape = (queries.numel(), len(keys))
        count = _count(seen, queries.numel(), grid)
        pairs += count
        pattern = None
        if count < shape[0] * shape[1]:
            pattern = seen.expand(*queries.shape, *grid).reshape(-1, grid.tokens).index_select(1, keys)
        name = (shape, None if pattern is None else blake2b(pattern.numpy()).digest())
        some = alike.setdefault(name, _Alike([], [], pattern))
        some.queries.append(queries.flatten())
        some.keys.append(keys)
    tiles = list(alike.values())
    parts = tuple(Part(len(a.queries), len(a.queries[0]), len(a.keys[0]), a.pattern is not None) for a in tiles)
    queries = torch.cat([queries for a in tiles for queries in a.queries])
    keys = torch.cat([keys for a in tiles for keys in a.keys])
    return Plan(parts, queries, keys, _joined(tiles, parts), pairs)


@dataclass
class _Alike:
    queries: list[Tensor]
    keys: list[Tensor]
    pattern: Tensor | None


def _joined(tiles: list[_Alike], parts: tuple[Part, ...]) -> Tensor:
    """The patterns end to end; each is given up when it is copied, so that they are in memory once."""
    patterns = torch.empty(sum(part.queries * part.keys for part in parts if part.masked), dtype=torch.bool)
    end = 0
    for some in tiles:
        if some.pattern is not None:
            start, end = end, end + some.pattern.numel()
            patterns[start:end] = some.pattern.flatten()
            some.pattern = None
    return patterns


def seen_from(rule: Rule, low: tuple[int, ...], size: Box, grid: TokenGrid) -> Bool[Tensor, "t y x key_t key_y key_x"]:
    """What each query of a box sees, to be broadcast.

    Every coordinate has an axis of its own, so that a rule compares each pair of coordinates once and only what
    depends on several of them is as large as all pairs.
    """
    axes = [torch.arange(start, start + n, dtype=torch.int32) for start, n in zip(low, size, strict=True)]
    axes += [torch.arange(n, dtype=torch.int32) for n in grid]
    t, y, x, key_t, key_y, key_x = (a.view(*(-1 if i == j else 1 for j in range(6))) for i, a in enumerate(axes))
    seen = rule(Coordinates(t, y, x), Coordinates(key_t, key_y, key_x), grid)
    return seen.view(*[1] * (6 - seen.dim()), *seen.shape)


def _union(seen: Tensor, grid: TokenGrid) -> Bool[Tensor, " tokens"]:
    return seen.flatten(0, 2).any(dim=0).expand(*grid).flatten()


def _count(seen: Tensor, queries: int, grid: TokenGrid) -> int:
    return int(seen.count_nonzero()) * (queries * grid.tokens // seen.numel())


def _box_size(rule: Rule, grid: TokenGrid) -> Box:
    """The size of boxes, found by letting them grow along whichever axis makes a query cheapest."""
    sizes = tuple(grid)
    size: Box = (1, 1, 1)
    cost = _cost(rule, size, grid)
    while True:
        larger = {
            _box(min(sizes[a], step) if a == axis else size[a] for a in range(3))
            for axis in range(3)
            for step in (size[axis] * 3 // 2 + size[axis] % 2, size[axis] * 2)
        }
        costs = {box: _cost(rule, box, grid) for box in sorted(larger) if box != size and _volume(box) <= MOST_QUERIES}
        best = min(costs, key=costs.__getitem__, default=size)
        if best == size or costs[best] >= cost:
            return size
        size, cost = best, costs[best]


def _cost(rule: Rule, size: Box, grid: TokenGrid) -> float:
    """Per query, in pairs, of the boxes at some places; boxes that stick out of the grid count whole."""
    spent = queries = 0
    for sample in SAMPLES:
        low = [int(part * n) // step * step for part, n, step in zip(sample, grid, size, strict=True)]
        box = _box(min(step, n - start) for start, n, step in zip(low, grid, size, strict=True))
        keys = int(_union(seen_from(rule, tuple(low), box, grid), grid).count_nonzero())
        spent += keys * (_volume(box) + KEY_COST)
        queries += _volume(box)
    for n, step in zip(grid, size, strict=True):
        spent *= -(-n // step) * step / n
    return spent / queries


def _volume(box: Box) -> int:
    return box[0] * box[1] * box[2]


def _box(sizes: object) -> Box:
    t, y, x = sizes  # type: ignore[misc]
    return (t, y, x)


class _Sized(Protocol):
    @property
    def nbytes(self) -> int: ...


Kept = TypeVar("Kept", bound=_Sized)
_kept: OrderedDict[object, _Sized] = OrderedDict()
PLANS_KEPT, PLAN_BYTES_KEPT = 256, 2**30


def shared(name: object, make: Callable[[], Kept]) -> Kept:
    """What ``make`` gives, made once per name and shared by all layers; the least recently used are dropped."""
    if name not in _kept:
        _kept[name] = make()
    _kept.move_to_end(name)
    while len(_kept) > 1 and (len(_kept) > PLANS_KEPT or sum(x.nbytes for x in _kept.values()) > PLAN_BYTES_KEPT):
        _kept.popitem(last=False)
    return _kept[name]  # type: ignore[return-value]
