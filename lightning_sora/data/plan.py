"""The batch plan: which clips, at which size, in which batch, on which rank.

A pure function of (seed, epoch, sizes, batch size). Sizes are known before a file is opened, so the
plan, not a loader, owns the order, and resuming in mid-epoch needs one integer: how many batches
were consumed.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.utils.data import Sampler

from lightning_sora.data.sources.base import ClipInfo
from lightning_sora.errors import SoraError
from lightning_sora.randomness import generator
from lightning_sora.spacetime import PatchSize, TokenGrid


@dataclass(frozen=True)
class PlannedBatch:
    """Clips of one grid, to be read together.

    Attributes:
        clips: indices into the source.
        visit: how often each was read before: the epoch.
    """

    clips: tuple[int, ...]
    grid: TokenGrid
    visit: int


@dataclass(frozen=True)
class FixedSize:
    """One height and width for all; as many frames as the clip has, up to ``frames``.

    Clips shorter than ``frames`` train at the longest length that their own frames fill (a still is
    a one-frame clip), in batches of their own.
    """

    frames: int
    height: int
    width: int
    patch: PatchSize

    def __post_init__(self) -> None:
        TokenGrid.of(self.frames, self.height, self.width, self.patch)

    def grid(self, info: ClipInfo, fps: float | None) -> TokenGrid:
        """The grid at which a clip is used."""
        available = info.frames
        if fps is not None and info.frames > 1:
            available = max(1, int((info.frames - 1) / info.fps * fps + 1e-6) + 1)
        frames = 1 + (min(self.frames, available) - 1) // self.patch.frames * self.patch.frames
        return TokenGrid.of(frames, self.height, self.width, self.patch)


def plan_epoch(
    grids: Sequence[TokenGrid], batch_size: int, *, seed: int, epoch: int, shuffle: bool
) -> list[PlannedBatch]:
    """All batches of an epoch. Every clip is in exactly one; the last of a size may be smaller.

    With clips of one size, the order of clips does not depend on the batch size.
    """
    if batch_size < 1:
        raise SoraError(f"batch_size={batch_size} must be at least 1")
    order = list(range(len(grids)))
    if shuffle:
        order = torch.randperm(len(grids), generator=generator(seed, "order", epoch)).tolist()
    visit = epoch if shuffle else 0
    batches: list[PlannedBatch] = []
    open_batches: dict[TokenGrid, list[int]] = {}
    for index in order:
        members = open_batches.setdefault(grids[index], [])
        members.append(index)
        if len(members) == batch_size:
            batches.append(PlannedBatch(tuple(open_batches.pop(grids[index])), grids[index], visit))
    batches.extend(PlannedBatch(tuple(members), grid, visit) for grid, members in open_batches.items())
    return batches


class PlanSampler(Sampler[PlannedBatch]):
    """Deals the batches of the plan to one rank, epoch after epoch.

    Training deals every rank the same number of batches, by starting the epoch over where they do not
    divide; evaluation gives each clip once, so ranks may differ by one batch.

    Args:
        consumed: batches of all ranks that were used before: where training begins.
    """

    def __init__(
        self,
        grids: Sequence[TokenGrid],
        batch_size: int,
        *,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        ranks: int = 1,
        consumed: int = 0,
    ) -> None:
        self.grids, self.batch_size, self.seed, self.shuffle = list(grids), batch_size, seed, shuffle
        self.rank, self.ranks = rank, ranks
        # Every epoch has as many batches as the first: the sizes of the clips do not change.
        self._length = len(self.batches(0))
        self.epoch, self._start = divmod(consumed // ranks, self._length) if self._length else (0, 0)

    def batches(self, epoch: int) -> list[PlannedBatch]:
        """One epoch of this rank."""
        batches = plan_epoch(self.grids, self.batch_size, seed=self.seed, epoch=epoch, shuffle=self.shuffle)
        if self.shuffle and batches:
            batches += itertools.islice(itertools.cycle(batches[:]), -len(batches) % self.ranks)
        return batches[self.rank :: self.ranks]

    def __iter__(self) -> Iterator[PlannedBatch]:
        """What is left of the present epoch, which ends with its last batch (nobody asks for one more)."""
        rest = self.batches(self.epoch)[self._start :]
        for left, batch in zip(reversed(range(len(rest))), rest, strict=True):
            if self.shuffle and not left:
                self.epoch, self._start = self.epoch + 1, 0
            yield batch

    def __len__(self) -> int:
        return self._length
