"""The batch plan: which clips, at which sizes, in which batch, on which rank.

A pure function of (seed, epoch, clips, size policy). Sizes are known before a file is opened, so the
plan, not a loader, owns the order. Training reads one endless stream of batches, epoch after epoch, of
which rank ``r`` of ``n`` takes every n-th from the r-th on; resuming needs one integer, how many batches of
the stream were consumed, and neither workers nor the number of ranks enter.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

from torch.utils.data import Sampler

from lightning_sora.data.packing import balanced_order, cost
from lightning_sora.data.sizes import SizePolicy
from lightning_sora.data.sources.base import ClipInfo
from lightning_sora.errors import SoraError
from lightning_sora.randomness import coarse_generator
from lightning_sora.spacetime import TokenGrid

#: Clips and how often each was visited before, in the order of one epoch.
Order = Sequence[tuple[int, int]]


@dataclass(frozen=True)
class PlannedBatch:
    """Clips to be read together.

    Attributes:
        clips: indices into the source.
        grids: of each clip; all equal unless packed.
        visits: how often each was read before.
        budget: tokens that a full batch has.
        mean_clips, mean_tokens: of the batches of the epoch.
    """

    clips: tuple[int, ...]
    grids: tuple[TokenGrid, ...]
    visits: tuple[int, ...]
    packed: bool = False
    budget: int = 0
    mean_clips: float = 0.0
    mean_tokens: float = 0.0

    @property
    def tokens(self) -> int:
        return sum(grid.tokens for grid in self.grids)

    def halves(self) -> tuple[PlannedBatch, PlannedBatch]:
        """The same clips in two batches."""
        middle = len(self.clips) // 2
        first, second = (
            replace(self, clips=self.clips[part], grids=self.grids[part], visits=self.visits[part])
            for part in (slice(middle), slice(middle, None))
        )
        return first, second


@dataclass(frozen=True)
class Usage:
    """What a policy makes of some clips.

    Attributes:
        clips: how many there are.
        dropped: reason -> ids of the clips that cannot be used.
        grids: how many clips each grid gets.
    """

    clips: int
    dropped: dict[str, list[str]] = field(default_factory=dict)
    grids: Counter[TokenGrid] = field(default_factory=Counter)

    @property
    def dropped_clips(self) -> int:
        return sum(map(len, self.dropped.values()))


class BatchPlan:
    """All batches of all epochs.

    Args:
        infos: the clips.
        policy: their sizes.
        fps: the rate that they are read at; None for each one's own.
        order: epoch -> clips with their visits; None: every clip once, as listed (evaluation).
        side_by_side: this many consecutive batches cost about the same, for ranks that take one each. It moves the
            order, so that it is no function of the number of ranks, which may change.
        begun: the epoch that the stream begins with, and those of its visits that were had before.

    Attributes:
        whole: an epoch of which nothing was had before.

    Raises:
        SoraError: no clip can be used; a bucket that was asked for gets none; or a number below 1.
    """

    def __init__(
        self,
        infos: Sequence[ClipInfo],
        policy: SizePolicy,
        *,
        fps: float | None,
        seed: int,
        order: Callable[[int], Order] | None = None,
        side_by_side: int = 8,
        begun: tuple[int, Collection[tuple[int, int]]] = (0, ()),
    ) -> None:
        if side_by_side < 1:
            raise SoraError(f"side_by_side={side_by_side} must be at least 1")
        self.infos, self.policy, self.fps, self.seed = infos, policy, fps, seed
        self.order, self.side_by_side, self.begun = order, side_by_side, begun
        self.whole = begun[0] + 1 if begun[1] else 0
        self.grids: dict[int, TokenGrid] = {}
        self.usage = Usage(len(infos))
        for index, info in enumerate(infos):
            grid = policy.grid(info, fps)
            if isinstance(grid, str):
                self.usage.dropped.setdefault(grid, []).append(info.id)
            else:
                self.grids[index] = grid
                self.usage.grids[grid] += 1
        if not self.grids:
            reasons = "; ".join(f"{len(ids)} {reason}" for reason, ids in self.usage.dropped.items())
            raise SoraError(
                f"none of {len(infos)} clips can be used ({reasons}); lower data.frames, height and width, or name "
                "other data.sizes"
            )
        if order is not None:
            policy.check(self.grids.values(), infos, fps)
        self.epoch = lru_cache(maxsize=2)(self._epoch)
        self._dealt = lru_cache(maxsize=2)(self._deal)
        self._starts = [0]  # of the epochs known so far: their lengths differ where clips are packed or chance decides

    def _epoch(self, epoch: int) -> list[PlannedBatch]:
        """The batches of one epoch. Every clip that can be used is in exactly one for each of its visits."""
        batches = self._dealt(epoch)
        if self.order is None:
            return batches
        costs = [cost([grid.tokens for grid in batch.grids]) for batch in batches]
        lead = -self.start(epoch) % self.side_by_side  # completes the group that the epoch before began
        drawn = balanced_order(costs, coarse_generator(self.seed, "batches", epoch), self.side_by_side, lead=lead)
        return [batches[i] for i in drawn]

    def start(self, epoch: int) -> int:
        """How many batches of the stream all epochs before this one have."""
        first = self.begun[0]
        while len(self._starts) <= epoch - first:
            self._starts.append(self._starts[-1] + len(self._dealt(first + len(self._starts) - 1)))
        return self._starts[max(0, epoch - first)]

    def had(self, consumed: int) -> tuple[int, list[tuple[int, int]]]:
        """The epoch that goes on after so many batches of the stream, and the visits that it has had."""
        epoch, had = self.begun[0], list(self.begun[1])
        while self.start(epoch + 1) <= consumed:
            epoch, had = epoch + 1, []
        for batch in self.epoch(epoch)[: consumed - self.start(epoch)]:
            had += zip(batch.clips, batch.visits, strict=True)
        return epoch, had

    def unkept(self, epoch: int) -> int:
        """Visits of an epoch of training at which chance left a clip out."""
        assert self.order is not None
        wanted = sum(index in self.grids for index, _ in self.order(epoch))
        return wanted - sum(len(batch.clips) for batch in self._dealt(epoch))

    def _deal(self, epoch: int) -> list[PlannedBatch]:
        """The batches of one epoch, in no order to speak of."""
        if self.order is None:
            order: Order = [(index, 0) for index in range(len(self.infos))]
        else:
            order = self.order(epoch)
            if epoch == self.begun[0] and self.begun[1]:
                order = [visit for visit in order if visit not in self.begun[1]]
        members: list[tuple[int, int]] = []
        grids: list[TokenGrid] = []
        for index, visit in order:
            grid = self._grid(index, visit)
            if grid is not None:
                members.append((index, visit))
                grids.append(grid)
        dealt = self.policy.batches(grids)
        used = [p for places in dealt for p in places]
        mean_clips = len(used) / max(1, len(dealt))
        mean_tokens = sum(grids[p].tokens for p in used) / max(1, len(dealt))
        return [
            PlannedBatch(
                tuple(members[p][0] for p in places),
                tuple(grids[p] for p in places),
                tuple(members[p][1] for p in places),
                self.policy.packed,
                self.policy.budget,
                mean_clips,
                mean_tokens,
            )
            for places in dealt
        ]

    def _grid(self, index: int, visit: int) -> TokenGrid | None:
        if index not in self.grids:
            return None
        if self.order is None:
            return self.grids[index]
        drawn = self.policy.draw(self.infos[index], self.fps, self.seed, visit)
        return None if isinstance(drawn, str) else drawn

    def stream(self, start: int) -> Iterator[PlannedBatch]:
        """The endless stream of training from its ``start``-th batch on.

        Raises:
            SoraError: an epoch without one batch.
        """
        first = self.begun[0]
        for number in itertools.count(first + max(0, bisect.bisect_right(self._starts, start) - 1)):
            batches = self.epoch(number)
            if not batches and not (number == first and self.begun[1]):  # which may have had all
                raise no_batch(number)
            self.start(number + 1)
            yield from batches[max(0, start - self.start(number)) :]


def no_batch(epoch: int) -> SoraError:
    return SoraError(f"epoch {epoch} has no batch: the shares in data.sizes keep no clip; raise them")


class PlanSampler(Sampler[PlannedBatch]):
    """Deals the batches of a plan to one rank.

    Training deals out the endless stream, cut into stretches; evaluation gives each clip once, so ranks may differ by
    one batch, and divides batches where there are fewer than ranks.

    Args:
        consumed: tells how many batches of all ranks were used so far, each time a stretch begins: that, not
            what workers have fetched ahead, is where it goes on. None: the sampler goes by its own count, from 0.

    Attributes:
        length: batches of this rank in a stretch; at first those of the first epoch.
        place: tells how many of them were used where a stretch goes on; None: as follows from ``consumed``.

    Raises:
        SoraError: fewer clips to evaluate than ranks; or a first epoch without a batch.
    """

    def __init__(
        self, plan: BatchPlan, *, rank: int = 0, ranks: int = 1, consumed: Callable[[], int] | None = None
    ) -> None:
        self.plan, self.rank, self.ranks, self.consumed = plan, rank, ranks, consumed
        self.place: Callable[[], int] | None = None
        self.training = plan.order is not None
        batches = plan.epoch(plan.whole)
        if not batches:
            raise no_batch(plan.whole)
        self._judged = [] if self.training else _at_least(batches, ranks)[rank::ranks]
        self.length = -(-len(batches) // ranks) if self.training else len(self._judged)
        self._own = 0

    def __iter__(self) -> Iterator[PlannedBatch]:
        """What is left of the present stretch."""
        if not self.training:
            yield from self._judged
            return
        start = self._own if self.consumed is None else self.consumed()
        place = start // self.ranks % self.length if self.place is None else self.place()
        left = self.length - place
        batches = itertools.islice(self.plan.stream(start), self.rank, left * self.ranks, self.ranks)
        for number, batch in enumerate(batches, start=1):
            if number == left:  # nobody asks for one more
                self._own = start + left * self.ranks
            yield batch

    def __len__(self) -> int:
        return self.length


def _at_least(batches: Sequence[PlannedBatch], count: int) -> list[PlannedBatch]:
    """The clips of some batches in no fewer than ``count``: a rank without any would stop all the others."""
    found = list(batches)
    while len(found) < count:
        largest = max(range(len(found)), key=lambda i: len(found[i].clips))
        if len(found[largest].clips) < 2:
            raise too_few(len(found), count)
        found[largest : largest + 1] = found[largest].halves()
    return found


def too_few(clips: int, ranks: int) -> SoraError:
    """What to do about a rank without any clip to evaluate."""
    return SoraError(
        f"{clips} clip{'s'[: clips != 1]} to evaluate cannot be dealt to {ranks} ranks; set trainer.devices to at most "
        f"{clips}, hold out {ranks} clips or more, or fit without validation by trainer.limit_val_batches=0"
    )
