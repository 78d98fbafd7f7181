"""Distances between real and generated clips as metrics: any extractor, any number of processes."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics.utilities.prints import rank_zero_only

from lightning_sora.errors import SoraError
from lightning_sora.metrics.clip_lists import ClipListMetric
from lightning_sora.metrics.extractors.base import Clip, Extractor
from lightning_sora.metrics.frechet import (
    Estimate,
    Moments,
    frechet_distance,
    frechet_infinity,
    group_of,
    merged,
)
from lightning_sora.metrics.half_samples import (
    EQUAL,
    LEAST_RELIABILITY,
    FrechetEstimate,
    clips_needed,
    frechet_estimate,
    frechet_floor,
)
from lightning_sora.metrics.kernel import jedi_distance, kernel_estimate
from lightning_sora.metrics.reference import ReferenceStatistics

log = logging.getLogger(__name__)
GROUPS = 16
"""Random groups that clips are dealt to by their ids, for intervals and extrapolation."""
ENDLESS = 0.95  # reliability of halves from which a line over 1/n extrapolates well
SIDES = ("real", "generated")
HALVES = {
    "": "unbiased",
    "_low": "low",
    "_high": "high",
}  # what is told of the distance between halves of the real clips


class ClipSetMetric(ClipListMetric):
    """Two sets of clips, each known by features and ids.

    The extractor is no part of the metric's state; a reference survives :meth:`reset`.

    Args:
        extractor: injected; its width is the state's.
        expected: how many clips each side must have when the value is computed; None for any number.
    """

    higher_is_better = False

    def __init__(self, extractor: Extractor, expected: int | None = None) -> None:
        super().__init__()
        self._extractor = (extractor,)
        self.expected = expected
        for side in SIDES:
            self.add_list(f"{side}_ids", torch.zeros(0, dtype=torch.int64))

    @property
    def extractor(self) -> Extractor:
        return self._extractor[0]

    def update(
        self, clips: Sequence[Clip], ids: Sequence[str], *, real: bool, fps: Sequence[float] | None = None
    ) -> None:
        """Adds clips to one side.

        Args:
            clips: display values 0 to 255.
            ids: one per clip; a clip is told by its id alone, on whichever rank it is.
            fps: frames per second of each clip, for an extractor that goes by seconds.

        Raises:
            SoraError: what the extractor cannot take.
        """
        self.add(self.extractor(clips, fps), ids, real=real)

    def add(self, features: Float[Tensor, "clips width"], ids: Sequence[str], *, real: bool) -> None:
        """Adds clips whose features are known."""
        if len(features) != len(ids) or features.ndim != 2 or features.shape[1] != self.extractor.width:
            raise SoraError(
                f"features {tuple(features.shape)} for {len(ids)} ids do not fit {self.extractor.title}, whose width "
                f"is {self.extractor.width}"
            )
        self._clips(features, ids, group_of(ids, GROUPS), real=real)

    def _clips(self, features: Tensor, ids: Sequence[str], groups: Tensor, *, real: bool) -> None:
        if not len(ids):
            return
        getattr(self, f"{SIDES[not real]}_ids").append(self.hashes(ids))
        # For torchmetrics, which sees calls of update alone: there is data, and what it computed before is stale.
        self._update_count += 1
        self._computed = None
        self._add(SIDES[not real], features.double().to(self.device), groups.to(self.device))

    def _add(self, side: str, features: Tensor, groups: Tensor) -> None:
        raise NotImplementedError

    def check_ids(self, side: str) -> int:
        """The number of clips of a side.

        Raises:
            SoraError: a clip was counted twice (a sampler that pads), or there are more or fewer than expected.
        """
        ids = self.collected(f"{side}_ids")
        different = len(ids.unique())
        if different != len(ids):
            raise SoraError(
                f"{len(ids) - different} of {len(ids)} {side} clips were given more than once, which biases the value: "
                "a distributed sampler that pads does this; use one that does not, and ids that tell clips apart"
            )
        if self.expected is not None and len(ids) != self.expected:
            raise SoraError(
                f"{len(ids)} {side} clips were given where {self.expected} were expected; a rank or a batch is missing"
            )
        return len(ids)

    def paired(self) -> bool:
        """Whether the sides hold the same ids, and so are pairs, which intervals keep together.

        That is right also where clips of one id are independent of each other.
        """
        first, second = (self.collected(f"{side}_ids").sort().values for side in SIDES)
        return len(first) > 0 and torch.equal(first, second)


class MomentsMetric(ClipSetMetric):
    """What needs sums of features and of their products alone: float64, exact under any partition.

    Args:
        reference: the real side, computed before; then only generated clips are added.
    """

    real_counts: Tensor
    real_totals: Tensor
    real_outers: Tensor
    generated_counts: Tensor
    generated_totals: Tensor
    generated_outers: Tensor

    def __init__(
        self, extractor: Extractor, expected: int | None = None, reference: ReferenceStatistics | None = None
    ) -> None:
        super().__init__(extractor, expected)
        if reference is not None:
            reference.check_extractor(extractor)
        self.reference = reference
        width = extractor.width
        for side in SIDES:
            shapes = {"counts": (GROUPS,), "totals": (GROUPS, width), "outers": (GROUPS, width, width)}
            for name, shape in shapes.items():
                self.add_state(f"{side}_{name}", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def _add(self, side: str, features: Tensor, groups: Tensor) -> None:
        counts, totals, outers = (getattr(self, f"{side}_{name}") for name in ("counts", "totals", "outers"))
        for group in groups.unique().tolist():
            rows = features[groups == group]
            counts[group] += len(rows)
            totals[group] += rows.sum(0)
            outers[group] += rows.T @ rows

    def add(self, features: Float[Tensor, "clips width"], ids: Sequence[str], *, real: bool) -> None:
        if real and self.reference is not None:
            raise SoraError("the real side is a reference computed before; give generated clips only, or no reference")
        super().add(features, ids, real=real)

    def groups(self, side: str) -> list[Moments]:
        """The moments of each group of a side."""
        if side == "real" and self.reference is not None:
            return list(self.reference.groups)
        counts, totals, outers = (getattr(self, f"{side}_{name}").cpu() for name in ("counts", "totals", "outers"))
        return [Moments(int(c), t, o) for c, t, o in zip(counts, totals, outers, strict=True)]

    def checked_groups(self) -> tuple[list[Moments], list[Moments]]:
        """Both sides, refusing what :meth:`check_ids` refuses."""
        for side in SIDES[self.reference is not None :]:
            self.check_ids(side)
        return self.groups("real"), self.groups("generated")


class FrechetVideoDistance(MomentsMetric):
    """The Fréchet distance between features of real and generated clips (Unterthiner et al. 2018).

    It is *FVD* with the extractor "i3d" and published weights; with any other it is that extractor's own distance,
    and ``extractor.title`` says which.
    """

    def compute(self) -> dict[str, Tensor]:
        """``value`` as defined; ``unbiased`` with its interval ``low`` to ``high`` and ``stderr``; ``infinity``,
        extrapolated to endless clips. Beside them the floors: ``small_sample_bias``, what two sets of this size from
        the law of the real clips would give, and ``real_vs_real`` with ``real_vs_real_low`` and
        ``real_vs_real_high``, the distance between two halves of the real clips without bias. ``real`` and
        ``generated`` are the numbers of clips. All float64.

        What so few clips do not tell is left out, and a warning says how many would: ``unbiased``, its interval and
        ``real_vs_real`` where covariances of half of the clips are too unreliable, ``infinity`` sooner, and
        ``small_sample_bias`` where the numbers of clips are too far apart. See
        :mod:`lightning_sora.metrics.half_samples`.

        Raises:
            SoraError: too few clips, clips given twice, or another number than expected.
        """
        real, generated = self.checked_groups()
        estimate = frechet_estimate(real, generated, paired=self.paired())
        found = {"value": frechet_distance(merged(real), merged(generated))}
        counts = merged(real).count, merged(generated).count
        if estimate is None or not estimate.reliable:
            least = LEAST_RELIABILITY if estimate is None else estimate.least_reliability
            _tell(estimate, counts, [clips_needed(side, least) for side in (real, generated)])
        else:
            found = _as_tensors(estimate)
            if min(estimate.reliability) >= ENDLESS:
                found["infinity"] = torch.tensor(frechet_infinity(real, generated), dtype=torch.float64)
        between = frechet_estimate(real[::2], real[1::2])
        if between is not None and between.reliable:
            named = _as_tensors(between)
            found |= {f"real_vs_real{end}": named[name] for end, name in HALVES.items()}
        floor = frechet_floor(real, *counts)
        if floor is not None:
            found["small_sample_bias"] = torch.tensor(floor, dtype=torch.float64)
        return found | {"real": torch.tensor(float(counts[0])), "generated": torch.tensor(float(counts[1]))}


class FrechetFrameDistance(FrechetVideoDistance):
    """The Fréchet distance between features of single frames (Heusel et al. 2017), however many each clip has.

    It is *FID* with the extractor "inception" and published weights. The frames of a clip are not independent, so that
    clips are dealt to groups as wholes, and intervals are over clips.
    """

    def update(
        self, clips: Sequence[Clip], ids: Sequence[str], *, real: bool, fps: Sequence[float] | None = None
    ) -> None:
        """Adds the frames of clips to one side; their rates are of no account."""
        frames = [frame[None] for clip in clips for frame in clip]
        self.add_frames(self.extractor(frames), ids, [len(clip) for clip in clips], real=real)

    def add_frames(
        self, features: Float[Tensor, "frames width"], ids: Sequence[str], counts: Sequence[int], *, real: bool
    ) -> None:
        """Adds clips the features of whose frames are known, one clip after the other.

        Args:
            counts: frames of each clip.
        """
        groups = group_of(ids, GROUPS)
        self._clips(features, ids, groups.repeat_interleave(torch.tensor(counts, dtype=torch.int64)), real=real)


class JEDi(MomentsMetric):
    """JEDi's distance (Luo et al. 2024) in the space of any extractor; see :func:`jedi_distance`."""

    def compute(self) -> dict[str, Tensor]:
        """``value``, float64."""
        real, generated = self.checked_groups()
        return {"value": jedi_distance(merged(real), merged(generated))}


class KernelVideoDistance(ClipSetMetric):
    """KVD: the unbiased cubic-kernel MMD^2 between features, over all pairs; see :func:`kernel_distance`.

    Features are kept, and sorted by clip id before anything is summed. No name changes the value.

    Args:
        paired: the sides hold the same ids, and those of one id belong together, such as a clip and its reconstruction:
            they are not compared with each other, and are left out together by the jackknife.
    """

    def __init__(self, extractor: Extractor, expected: int | None = None, paired: bool = False) -> None:
        super().__init__(extractor, expected)
        self.pairs = paired
        for side in SIDES:
            self.add_list(f"{side}_features", torch.zeros((0, extractor.width), dtype=torch.float64))
            self.add_list(f"{side}_order", torch.zeros(0, dtype=torch.int64))

    def add(
        self,
        features: Float[Tensor, "clips width"],
        ids: Sequence[str],
        *,
        real: bool,
        order: Sequence[str] | None = None,
    ) -> None:
        """Adds clips whose features are known.

        Args:
            order: what clips are sorted by before anything is summed: digests of their contents, where no name is to
                change even a rounding; by default their ids. Not for pairs, which are told by ids.
        """
        if len(ids):
            getattr(self, f"{SIDES[not real]}_order").append(self.hashes(ids if order is None else order))
        super().add(features, ids, real=real)

    def _add(self, side: str, features: Tensor, groups: Tensor) -> None:
        getattr(self, f"{side}_features").append(features)

    def compute(self) -> dict[str, Tensor]:
        """``value``, its interval ``low`` to ``high``, ``stderr``, all float64.

        Raises:
            SoraError: too few clips, clips given twice, another number than expected, or no pairs where ``paired``.
        """
        for side in SIDES:
            self.check_ids(side)
        if self.pairs and not self.paired():
            raise SoraError("a paired kernel distance needs the same ids on both sides; give a partner for each clip")
        estimate = kernel_estimate(self.features("real"), self.features("generated"), paired=self.pairs)
        return {name: value for name, value in _as_tensors(estimate).items() if name != "unbiased"}

    def features(self, side: str) -> Float[Tensor, "clips width"]:
        """Of one side, in the order of the clips' hashed ids, or of what else orders them."""
        order = self.collected(f"{side}_order").cpu().argsort(stable=True)
        return self.collected(f"{side}_features").cpu()[order]


def _tell(estimate: FrechetEstimate | None, counts: tuple[int, int], needed: Sequence[int | None]) -> None:
    """Warns that there are too few clips for more than the value as defined."""
    told = [count for count in needed if count is not None]
    known = len(told) == len(needed) and max(told) > min(counts)
    more = f"about {max(told)} clips a side" if known else "more clips"
    why = "there are too few"
    if estimate is not None:
        kept, least = min(estimate.reliability), estimate.least_reliability
        why = f"the covariances of two halves have {kept:.0%} in common where {least:.0%} are needed"
        if max(counts) > EQUAL * min(counts):
            more = f"as many clips on both sides, or {more}"
    rank_zero_only(log.warning)(
        "%d real and %d generated clips: the distance as defined is mostly bias, and what it is without bias cannot be "
        "told (%s); give %s",
        *counts,
        why,
        more,
    )


def _as_tensors(estimate: Estimate) -> dict[str, Tensor]:
    names = ("value", "unbiased", "stderr", "low", "high")
    return {name: torch.tensor(getattr(estimate, name), dtype=torch.float64) for name in names}
