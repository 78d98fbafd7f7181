"""Size policies: at which size a clip is used, and which clips share a batch.

``fixed``: one size for all. ``bucketed``: a table of sizes, clips of one bucket to a batch (Open-Sora).
``packed``: every clip at its own size, several to a sequence (NaViT, Dehghani et al. 2023,
arXiv:2307.06304). All three read the same section of a recipe: its frames, height and width are the
size of ``fixed`` and the largest of the others, and its batch size at that size is their budget of tokens.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lightning_sora.data.packing import pack
from lightning_sora.data.sources.base import ClipInfo
from lightning_sora.errors import SoraError
from lightning_sora.randomness import uniform_per_clip
from lightning_sora.registry import Registry
from lightning_sora.spacetime import PatchSize, TokenGrid

Members = tuple[int, ...]
#: Height over width. Those of Open-Sora's and Stable Diffusion XL's tables that films and pictures have.
ASPECTS = ("9:21", "9:16", "2:3", "3:4", "1:1", "4:3", "3:2", "16:9", "21:9")
#: A clip may be enlarged by this much of its area to fill a bucket: sizes in manifests are rounded.
ENLARGED = 1.1


@dataclass(frozen=True)
class Limits:
    """What a recipe says of sizes, whatever the policy.

    Attributes:
        frames, height, width: the one size, or the longest and largest.
        batch_size: clips of that size per batch and rank.
    """

    frames: int
    height: int
    width: int
    patch: PatchSize
    batch_size: int

    def __post_init__(self) -> None:
        TokenGrid.of(self.frames, self.height, self.width, self.patch)
        if self.batch_size < 1:
            raise SoraError(f"batch_size={self.batch_size} must be at least 1")

    @property
    def grid(self) -> TokenGrid:
        return TokenGrid.of(self.frames, self.height, self.width, self.patch)

    @property
    def tokens(self) -> int:
        """The budget of a batch."""
        return self.batch_size * self.grid.tokens

    def frames_of(self, info: ClipInfo, fps: float | None) -> int:
        """Frames that a clip has at a rate."""
        if fps is None or info.frames == 1:
            return info.frames
        return max(1, int((info.frames - 1) / info.fps * fps + 1e-6) + 1)

    def longest(self, frames: int) -> int:
        """The greatest usable length up to ``frames``."""
        return 1 + (min(self.frames, frames) - 1) // self.patch.frames * self.patch.frames


class SizePolicy(ABC):
    """Maps clips to grids, and grids to batches.

    Attributes:
        budget: tokens of a full batch.
        packed: clips of different grids lie end to end in one sequence.
    """

    budget: int
    packed = False

    def __init__(self, limits: Limits) -> None:
        self.limits = limits

    @abstractmethod
    def grid(self, info: ClipInfo, fps: float | None) -> TokenGrid | str:
        """The grid at which a clip is used, or why it cannot be."""

    def draw(self, info: ClipInfo, fps: float | None, seed: int, visit: int) -> TokenGrid | str:
        """The grid at one visit in training, for policies that leave it to chance."""
        return self.grid(info, fps)

    @abstractmethod
    def batches(self, grids: Sequence[TokenGrid]) -> list[Members]:
        """Deals clips, in the order given, to batches; every one is in exactly one.

        Returns:
            The places of each batch's members.
        """

    def check(self, grids: Iterable[TokenGrid], infos: Sequence[ClipInfo], fps: float | None) -> None:  # noqa: B027
        """Raises SoraError where what was asked for cannot be had from these clips."""


SIZES: Registry[SizePolicy] = Registry("size policy", name="sizes", given=("limits",))


@SIZES.register("fixed")
class Fixed(SizePolicy):
    """One height and width for all; as many frames as the clip has, up to the recipe's.

    Clips that are shorter are used at the longest length that their own frames fill (a still is a
    one-frame clip), in batches of their own.
    """

    def __init__(self, limits: Limits) -> None:
        super().__init__(limits)
        self.budget = limits.tokens

    def grid(self, info: ClipInfo, fps: float | None) -> TokenGrid:
        frames = self.limits.longest(self.limits.frames_of(info, fps))
        return TokenGrid.of(frames, self.limits.height, self.limits.width, self.limits.patch)

    def batches(self, grids: Sequence[TokenGrid]) -> list[Members]:
        return _by_grid(grids, dict.fromkeys(set(grids), self.limits.batch_size))


@SIZES.register("bucketed")
class Bucketed(SizePolicy):
    """A table of frames x resolution x aspect; each clip goes to the largest bucket that it fills.

    Args:
        frames: lengths of the buckets; None: 1, the recipe's, and its halves.
        resolutions: square roots of the buckets' areas, in pixels; None: that of the recipe's height and width.
        aspects: height over width, each as "h:w".
        tokens: of a batch; None: the recipe's batch size at its size.
        keep: (resolution, frames) -> the share of eligible clips that take this bucket at a visit; the others go
            on to smaller ones. 1 where nothing is said.

    Raises:
        SoraError: a length that does not fit the patch, a malformed aspect, a budget below one clip.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        frames: tuple[int, ...] | None = None,
        resolutions: tuple[int, ...] | None = None,
        aspects: tuple[str, ...] = ASPECTS,
        tokens: int | None = None,
        keep: Mapping[tuple[int, int], float] | None = None,
    ) -> None:
        super().__init__(limits)
        self.asked = (frames is not None, resolutions is not None)
        lengths = sorted(_halves(limits) if frames is None else frames, reverse=True)
        root = round(math.sqrt(limits.height * limits.width))
        areas = sorted(resolutions or (root,), reverse=True)
        self.budget = limits.tokens if tokens is None else tokens
        try:
            self.keep = {(int(r), int(f)): float(share) for (r, f), share in (keep or {}).items()}
        except (TypeError, ValueError, AttributeError):
            raise SoraError(
                f"keep={keep} must be shares by (resolution, frames), as in {{({areas[0]}, {lengths[0]}): 0.5}}"
            ) from None
        for cell, share in self.keep.items():
            if cell[0] not in areas or cell[1] not in lengths or not 0 <= share <= 1:
                raise SoraError(
                    f"keep={{{cell}: {share}}} must name a (resolution, frames) of {areas} x {lengths} and a share "
                    "from 0 to 1"
                )
        shapes = [(aspect, _ratio(aspect)) for aspect in aspects]
        if not shapes or not lengths or not areas or min(areas) < 1:
            raise SoraError("bucketed needs at least one length, one positive resolution and one aspect")
        self.table: dict[tuple[int, int], list[TokenGrid]] = {}
        for area in areas:
            for length in lengths:
                grids = {_bucket(length, area, ratio, limits.patch) for _, ratio in shapes}
                self.table[area, length] = sorted(grids)
                worst = max(grid.tokens for grid in grids)
                if worst > self.budget:
                    raise SoraError(
                        f"the bucket of {length} frames at resolution {area} would get batches of no clip: one has "
                        f"{worst} tokens, more than the budget of {self.budget}; raise tokens (or data.batch_size) "
                        "or drop the bucket"
                    )

    def grid(self, info: ClipInfo, fps: float | None) -> TokenGrid | str:
        cells = self.eligible(info, fps)
        return self._shape(cells[0], info) if cells else self._why_not(info, fps)

    def draw(self, info: ClipInfo, fps: float | None, seed: int, visit: int) -> TokenGrid | str:
        if not self.keep:
            return self.grid(info, fps)
        for cell in (cells := self.eligible(info, fps)):
            chance = float(uniform_per_clip(seed, f"bucket {cell}", [(info.id, visit)]))
            if chance < self.keep.get(cell, 1.0):
                return self._shape(cell, info)
        return "no bucket kept it at this visit" if cells else self._why_not(info, fps)

    def batches(self, grids: Sequence[TokenGrid]) -> list[Members]:
        return _by_grid(grids, {grid: self.budget // grid.tokens for grid in set(grids)})

    def eligible(self, info: ClipInfo, fps: float | None) -> list[tuple[int, int]]:
        """The (resolution, frames) that a clip fills without being enlarged, largest first."""
        frames = self.limits.frames_of(info, fps)
        fits = [(a, n) for a, n in self.table if n <= frames and a * a <= ENLARGED * info.height * info.width]
        longest = max((n for _, n in fits), default=0)
        # A film may be cut to a still only if it is too short for all else: stills have a source of their own.
        return [(a, n) for a, n in fits if n > 1 or longest == 1]

    def check(self, grids: Iterable[TokenGrid], infos: Sequence[ClipInfo], fps: float | None) -> None:
        # Of an axis that was left to its default, no bucket was asked for: there the clips decide.
        filled = {self._asked(cell) for info in infos for cell in self._reached(info, fps)}
        for area, length in self.table:
            if self._asked((area, length)) not in filled and any(self.asked):
                longest = max((self.limits.frames_of(info, fps) for info in infos), default=0)
                largest = max((math.sqrt(info.height * info.width) for info in infos), default=0.0)
                raise SoraError(
                    f"the bucket of {length} frames at resolution {area} gets no clip: of {len(infos)} clips the "
                    f"longest has {longest} frames and the largest a resolution of {largest:.0f}, and a clip goes to "
                    "the largest bucket that it fills; remove this bucket, or keep some clips from larger ones"
                )

    def _asked(self, cell: tuple[int, int]) -> tuple[int | None, int | None]:
        """What of a bucket's (resolution, frames) the recipe names."""
        lengths, areas = self.asked
        return cell[0] if areas else None, cell[1] if lengths else None

    def _reached(self, info: ClipInfo, fps: float | None) -> list[tuple[int, int]]:
        """The buckets that a clip may come to, given the shares that larger ones keep."""
        reached = []
        for cell in self.eligible(info, fps):
            share = self.keep.get(cell, 1.0)
            if share > 0:
                reached.append(cell)
            if share == 1:
                break
        return reached

    def _shape(self, cell: tuple[int, int], info: ClipInfo) -> TokenGrid:
        patch = self.limits.patch
        own = math.log(info.height / info.width)
        return min(
            self.table[cell],
            key=lambda grid: (abs(math.log(grid.height * patch.height / (grid.width * patch.width)) - own), grid),
        )

    def _why_not(self, info: ClipInfo, fps: float | None) -> str:
        if self.limits.frames_of(info, fps) < min(n for _, n in self.table):
            return "shorter than the shortest bucket"
        return "smaller than the smallest bucket"


@SIZES.register("packed")
class Packed(SizePolicy):
    """Every clip at its own size and length, cut down to whole patches, end to end in sequences.

    Args:
        tokens: of a sequence; None: the recipe's batch size at its size.
        area: pixels of a frame above which a clip is scaled down, its aspect kept; None: the recipe's height x width.
        lookahead: clips that wait to fill a sequence; more of them leave less of it empty.

    Raises:
        SoraError: an impossible number.
    """

    packed = True

    def __init__(
        self, limits: Limits, *, tokens: int | None = None, area: int | None = None, lookahead: int = 64
    ) -> None:
        super().__init__(limits)
        self.budget = limits.tokens if tokens is None else tokens
        self.area = limits.height * limits.width if area is None else area
        if self.budget < 1 or self.area < 1 or lookahead < 1:
            raise SoraError(f"tokens={self.budget}, area={self.area} and lookahead={lookahead} must be at least 1")
        self.lookahead = lookahead

    def grid(self, info: ClipInfo, fps: float | None) -> TokenGrid | str:
        patch = self.limits.patch
        scale = min(1.0, math.sqrt(self.area / (info.height * info.width)))
        # Sizes a hair under a multiple, such as 31.99, are that multiple.
        height, width = (int(n * scale / p + 1e-6) for n, p in ((info.height, patch.height), (info.width, patch.width)))
        if not height or not width:
            return "smaller than a patch"
        frames = self.limits.longest(self.limits.frames_of(info, fps))
        rows = min(1 + (frames - 1) // patch.frames, self.budget // (height * width))
        return TokenGrid(rows, height, width) if rows else "one frame exceeds the budget of tokens"

    def batches(self, grids: Sequence[TokenGrid]) -> list[Members]:
        return pack([grid.tokens for grid in grids], self.budget, self.lookahead)


def _by_grid(grids: Sequence[TokenGrid], sizes: Mapping[TokenGrid, int]) -> list[Members]:
    """Batches of one grid each; the last of a grid may be smaller."""
    batches: list[Members] = []
    waiting: dict[TokenGrid, list[int]] = {}
    for place, grid in enumerate(grids):
        members = waiting.setdefault(grid, [])
        members.append(place)
        if len(members) == sizes[grid]:
            batches.append(tuple(waiting.pop(grid)))
    return batches + [tuple(members) for members in waiting.values()]


def _halves(limits: Limits) -> list[int]:
    rows, lengths = (limits.frames - 1) // limits.patch.frames, {1}
    while rows:
        lengths.add(1 + rows * limits.patch.frames)
        rows //= 2
    return sorted(lengths)


def _ratio(aspect: str) -> float:
    parts = str(aspect).split(":")
    try:
        height, width = map(float, parts)
        if height <= 0 or width <= 0:
            raise ValueError
    except ValueError:
        raise SoraError(f"aspect {aspect!r} must be height over width as 'h:w', such as '9:16'") from None
    return height / width


def _bucket(frames: int, resolution: int, ratio: float, patch: PatchSize) -> TokenGrid:
    def whole(size: float, step: int) -> int:
        return max(1, round(size / step)) * step

    height = whole(resolution * math.sqrt(ratio), patch.height)
    return TokenGrid.of(frames, height, whole(resolution / math.sqrt(ratio), patch.width), patch)
