"""Tiles of queries and the keys that any of them sees: how a rule for pairs of tokens is computed without all pairs.

Queries that lie near each other in spacetime mostly see the same keys. A tile is a box of queries, computed against the
union of their keys; within it, a pattern leaves out the pairs that the rule does not hold for, if there are any. Tiles
of one pattern are computed together.
"""

from __future__ import annotations

import itertools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import NamedTuple, Protocol, TypeVar, no_type_check, runtime_checkable

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from lightning_sora.spacetime import TokenGrid


class Coordinates(NamedTuple):
    """Where tokens are: integers of any shape, alike or such that they broadcast."""

    t: Int[Tensor, "*_"]
    y: Int[Tensor, "*_"]
    x: Int[Tensor, "*_"]

    @staticmethod
    @no_type_check  # FlexAttention compiles it
    def of(index: Int[Tensor, "*_"], grid: TokenGrid) -> Coordinates:
        """Of tokens, given by their places in reading order."""
        frame = grid.height * grid.width
        return Coordinates(index // frame, index % frame // grid.width, index % grid.width)


Rule = Callable[[Coordinates, Coordinates, TokenGrid], Bool[Tensor, "*_"]]
"""Whether each query sees each key, for coordinates that broadcast against each other."""

#: What a key of a tile costs beside its scores, in queries: gathering it, and starting on it. Measured on a CPU.
KEY_COST = 40
#: Larger tiles gain nothing, and their pairs are looked at together when a plan is made.
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
        queries, keys, patterns = (x.to(device) for x in (self.queries, self.keys, self.patterns))
        return Plan(self.parts, queries, keys, patterns, self.pairs)

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


@dataclass
class _Alike:
    """Tiles of one pattern."""

    pattern: Tensor | None
    queries: list[Tensor] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)

    @property
    def part(self) -> Part:
        return Part(len(self.queries), len(self.queries[0]), len(self.keys[0]), self.pattern is not None)


def make_plan(rule: Rule, grid: TokenGrid) -> Plan:
    """Plans tile by tile: no more than ``MOST_QUERIES x tokens`` pairs are looked at together."""
    size = _tile_size(rule, grid)
    index = torch.arange(grid.tokens).view(*grid)
    found: dict[object, _Alike] = {}
    pairs = 0
    for low in itertools.product(*(range(0, n, step) for n, step in zip(grid, size, strict=True))):
        box = [range(start, min(start + step, n)) for start, step, n in zip(low, size, grid, strict=True)]
        queries = index[tuple(slice(axis.start, axis.stop) for axis in box)]
        seen = seen_from(rule, box, grid)
        keys = _union(seen, grid).nonzero()[:, 0]
        count = int(seen.count_nonzero()) * (queries.numel() * grid.tokens // seen.numel())
        pairs += count
        pattern = None
        if count < queries.numel() * len(keys):
            pattern = seen.expand(*queries.shape, *grid).reshape(-1, grid.tokens).index_select(1, keys)
        name = None if pattern is None else blake2b(pattern.numpy().data).digest()
        alike = found.setdefault((queries.numel(), len(keys), name), _Alike(pattern))
        alike.queries.append(queries.flatten())
        alike.keys.append(keys)
    tiles = list(found.values())
    return Plan(
        tuple(some.part for some in tiles),
        torch.cat([queries for some in tiles for queries in some.queries]),
        torch.cat([keys for some in tiles for keys in some.keys]),
        _joined(tiles),
        pairs,
    )


def _joined(tiles: list[_Alike]) -> Bool[Tensor, " _"]:
    """The patterns end to end; each is given up when it is copied, so that they are in memory once."""
    joined = torch.empty(sum(some.pattern.numel() for some in tiles if some.pattern is not None), dtype=torch.bool)
    end = 0
    for some in tiles:
        if some.pattern is not None:
            start, end = end, end + some.pattern.numel()
            joined[start:end] = some.pattern.flatten()
            some.pattern = None
    return joined


def seen_from(rule: Rule, box: Sequence[range], grid: TokenGrid) -> Bool[Tensor, "t y x key_t key_y key_x"]:
    """What each query of a box sees, to be broadcast.

    Every coordinate has an axis of its own, so that a rule compares each pair of coordinates once and only what
    depends on several of them is as large as all pairs.
    """
    axes = [*box, *(range(n) for n in grid)]
    t, y, x, key_t, key_y, key_x = (
        torch.arange(a.start, a.stop, dtype=torch.int32).view(*(-1 if i == axis else 1 for i in range(6)))
        for axis, a in enumerate(axes)
    )
    seen = rule(Coordinates(t, y, x), Coordinates(key_t, key_y, key_x), grid)
    return seen.view(*[1] * (6 - seen.dim()), *seen.shape)


def _union(seen: Bool[Tensor, "t y x key_t key_y key_x"], grid: TokenGrid) -> Bool[Tensor, " tokens"]:
    return seen.flatten(0, 2).any(dim=0).expand(*grid).flatten()


def _tile_size(rule: Rule, grid: TokenGrid) -> tuple[int, ...]:
    """The size of tiles, found by letting them grow along whichever axis makes a query cheapest."""
    size: tuple[int, ...] = (1, 1, 1)
    cost = _cost(rule, size, grid)
    while True:
        larger = {
            tuple(min(n, step) if i == axis else size[i] for i, n in enumerate(grid))
            for axis in range(3)
            for step in (size[axis] + (size[axis] + 1) // 2, size[axis] * 2)
        }
        costs = {box: _cost(rule, box, grid) for box in sorted(larger - {size}) if math.prod(box) <= MOST_QUERIES}
        best = min(costs, key=costs.__getitem__, default=size)
        if best == size or costs[best] >= cost:
            return size
        size, cost = best, costs[best]


def _cost(rule: Rule, size: tuple[int, ...], grid: TokenGrid) -> float:
    """Per query, in pairs, of the tiles at some places; tiles that stick out of the grid count whole."""
    spent, queries = 0.0, 0
    for sample in SAMPLES:
        low = [int(part * n) // step * step for part, n, step in zip(sample, grid, size, strict=True)]
        box = [range(start, min(start + step, n)) for start, step, n in zip(low, size, grid, strict=True)]
        volume = math.prod(map(len, box))
        spent += int(_union(seen_from(rule, box, grid), grid).count_nonzero()) * (volume + KEY_COST)
        queries += volume
    return spent / queries * math.prod(-(-n // step) * step / n for n, step in zip(grid, size, strict=True))


@runtime_checkable
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
        while len(_kept) > 1 and (len(_kept) > PLANS_KEPT or sum(x.nbytes for x in _kept.values()) > PLAN_BYTES_KEPT):
            _kept.popitem(last=False)
    _kept.move_to_end(name)
    return _kept[name]  # type: ignore[return-value]
