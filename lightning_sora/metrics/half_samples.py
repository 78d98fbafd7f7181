"""The Fréchet distance without the bias of few clips, and its floor, from balanced halves of the clips.

A covariance of n clips shares with that of n others of the same law less than with itself: the *reliability*
``r = tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2) / tr S`` of two halves is below 1, the farther the fewer clips there are
against the effective rank. Between two laws the same root is attenuated by ``sqrt(r_1 r_2)`` (Spearman 1904, for
correlations) where the covariances are equal or multiples of each other, and by less where clips of either law are many
for what the two have in common: by that to the power of how fast it rises from quarters to halves of the clips, against
how fast ``sqrt(r_1 r_2)`` does. Halves are compared with halves and the attenuation is divided out. On average that is
exact for equal laws, shifted means and scaled covariances, however few the clips; else it is close, and the interval
allows for the share that is not reliable.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy.linalg import hadamard
from scipy.linalg.lapack import dpstrf
from scipy.stats import t as student_t
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.frechet import Estimate, Moments, frechet_distance, merged

LEAST_RELIABILITY = 0.5  # below, the interval would hold 0 whatever the distance
LEAST_UNLIKE = 0.9  # of sides that differ in size or in reliability, whose attenuations no longer multiply below it
EQUAL = 1.5  # sizes within this ratio are equal enough
ALIKE = 2.5  # and 1 - r of both sides within this one, as different laws have it, but for sampling
SLACK = 1.0  # half-width of the interval per share of the distance that is not reliable
SLOWEST = 0.05  # rise of reliability from quarters to halves, against what is missing of it, that tells anything
LEAST_SPLITS = 3  # of which each quarter holds two clips
MOST_POWER = 2.0  # of the attenuation of equal laws; between others it is weaker, but for sampling
CURVATURE = 0.75  # of the second difference that extrapolates the floor, between a line and a parabola


@dataclass(frozen=True)
class Sample:
    """Mean and covariance of some clips, the covariance S by a root: ``root @ root.T = S``."""

    count: int
    mean: Float[Tensor, " width"]
    root: Float[Tensor, "width rank"]
    trace: float

    @classmethod
    def of(cls, moments: Moments) -> Sample:
        """Of two clips or more."""
        covariance = moments.covariance
        rounding = moments.outer.trace() / moments.count * len(covariance) * torch.finfo(torch.float64).eps
        # A pivoted Cholesky factor: any root will do, and this one takes a tenth of the time of eigenvectors. It ends
        # where what remains is rounding, so that equal clips have no covariance at all.
        factor, order, rank, _ = dpstrf(covariance.cpu().numpy(), tol=float(rounding), lower=1)
        root = torch.zeros(len(covariance), rank, dtype=torch.float64)
        root[torch.from_numpy(order).long() - 1] = torch.from_numpy(factor).tril()[:, :rank]
        return cls(moments.count, moments.mean, root, float(root.square().sum()))

    def overlap(self, other: Sample) -> float:
        """``tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2)``, the sum of singular values of ``root_1^T root_2``."""
        product = self.root.T @ other.root
        if product.shape[0] > product.shape[1]:
            product = product.T
        return float(torch.linalg.eigvalsh(product @ product.T).clamp(min=0).sqrt().sum())

    def apart(self, other: Sample) -> float:
        """The squared distance of the means."""
        return float((self.mean - other.mean).square().sum())


@dataclass(frozen=True)
class Split:
    """Two sets of clips in halves, and those in quarters.

    Attributes:
        means: squared distances of the means of each half of the one to each of the other, less that of halves of one.
        traces: of the covariances of each two such halves, together.
        roots: ``tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2)`` of each two such halves.
        within: distance of the means of halves of one set, the mean over both; ``means`` are less this.
        reliability: of the halves of either set.
        rise: of the logarithm of the reliability from quarters to halves, the mean over both sets.
        cross_rise: the same between the sets, of halves and quarters that are no pairs.
    """

    means: Float[Tensor, "2 2"]
    traces: Float[Tensor, "2 2"]
    roots: Float[Tensor, "2 2"]
    within: float
    reliability: tuple[float, float]
    rise: float
    cross_rise: float

    @classmethod
    def of(cls, real: Sequence[Moments], generated: Sequence[Moments]) -> Split:
        """Of four quarters of each set, of which the first two are one half."""
        quarters = [[Sample.of(moments) for moments in side] for side in (real, generated)]
        halves = [[Sample.of(side[0] + side[1]), Sample.of(side[2] + side[3])] for side in (real, generated)]
        within = sum(a.apart(b) for a, b in halves) / 2
        a, b = halves
        means = torch.tensor([[x.apart(y) for y in b] for x in a], dtype=torch.float64) - within
        traces = torch.tensor([[x.trace + y.trace for y in b] for x in a], dtype=torch.float64)
        roots = torch.tensor([[x.overlap(y) for y in b] for x in a], dtype=torch.float64)
        known = [_reliability([a[0].overlap(a[1])], a), _reliability([b[0].overlap(b[1])], b)]
        rises = [
            _log(half) - _log(_reliability([side[0].overlap(side[2]), side[1].overlap(side[3])], side))
            for half, side in zip(known, quarters, strict=True)
        ]
        one, other = quarters
        # 0 with 2 and 1 with 3: on both sides quarters of different halves, so that no pair is compared with itself.
        apart = [one[i].overlap(other[j]) for i, j in ((0, 2), (2, 0), (1, 3), (3, 1))]
        scale, finer = (_scale(*sides) for sides in (halves, quarters))
        crossing = _log((float(roots[0, 1] + roots[1, 0]) / 2) / scale) - _log(sum(apart) / 4 / finer)
        return cls(means, traces, roots, within, (known[0], known[1]), sum(rises) / 2, crossing)

    @property
    def attenuation(self) -> float:
        """``-log sqrt(r_1 r_2)``."""
        return -(_log(self.reliability[0]) + _log(self.reliability[1])) / 2

    def distances(self, power: float) -> Float[Tensor, "2 2"]:
        """Of each half of the one to each of the other, with roots freed of the attenuation to this power."""
        return self.means + self.traces - 2 * math.exp(power * self.attenuation) * self.roots

    @property
    def plain(self) -> Float[Tensor, "2 2"]:
        """The same as the distance is defined."""
        return self.means + self.within + self.traces - 2 * self.roots


def _reliability(roots: Sequence[float], samples: Sequence[Sample]) -> float:
    trace = sum(sample.trace for sample in samples) / len(samples)
    return sum(roots) / len(roots) / trace if trace > 0 else 1.0


def _scale(first: Sequence[Sample], second: Sequence[Sample]) -> float:
    """The geometric mean of the mean traces."""
    traces = [sum(sample.trace for sample in side) / len(side) for side in (first, second)]
    return math.sqrt(traces[0] * traces[1]) or 1.0


def _log(share: float) -> float:
    """Of a share that rounding may have made 0."""
    return math.log(max(share, torch.finfo(torch.float64).eps))


@dataclass(frozen=True)
class FrechetEstimate(Estimate):
    """A distance with its interval.

    Attributes:
        reliability: of half of the clips of each side; see the module.
        counts: of clips of each side.
    """

    reliability: tuple[float, float]
    counts: tuple[int, int]

    @property
    def least_reliability(self) -> float:
        """That ``unbiased`` and its interval need."""
        missing = [1 - share for share in self.reliability]
        alike = max(missing) <= ALIKE * min(missing)
        return LEAST_RELIABILITY if alike and max(self.counts) <= EQUAL * min(self.counts) else LEAST_UNLIKE

    @property
    def reliable(self) -> bool:
        """Whether ``unbiased`` and its interval can be told: by simulation they are right then."""
        return min(self.reliability) >= self.least_reliability


def balanced_halves(groups: Sequence[Moments]) -> list[tuple[list[int], list[int]]]:
    """Splits of the groups into halves such that any two groups are as often together as apart (McCarthy 1969).

    Raises:
        SoraError: the number of groups is not a power of two, 4 or more.
    """
    if len(groups) < 4 or len(groups) & (len(groups) - 1):
        raise SoraError(f"balanced halves need 4, 8, 16 ... groups of clips, got {len(groups)}; deal them anew")
    rows = hadamard(len(groups))[1:]
    return [([i for i, s in enumerate(row) if s > 0], [i for i, s in enumerate(row) if s < 0]) for row in rows]


def frechet_estimate(
    real: Sequence[Moments], generated: Sequence[Moments], confidence: float = 0.95, paired: bool = False
) -> FrechetEstimate | None:
    """The distance between two sets of clips given as disjoint random groups, with its interval.

    ``unbiased`` is the mean over balanced splits of the distance of a half to a half, without the attenuation. Its
    variance is that of the difference between halves, which counts what is of second order twice (the variance of a
    quadratic form, all there is where the laws are equal) and is lessened by what the splits differ.

    Args:
        paired: clip by clip, the sides belong together (a clip and its reconstruction, two clips of one caption), and
            group by group they hold the same pairs: halves with the same pairs are not compared. Else the sides are
            independent.

    Returns:
        None where too few quarters hold two clips.

    Raises:
        SoraError: as :func:`frechet_distance` and :func:`balanced_halves`, or different numbers of groups.
    """
    if len(real) != len(generated):
        raise SoraError(f"{len(real)} and {len(generated)} groups of clips do not go together; deal both sides alike")
    splits = []
    for halves in balanced_halves(real):
        parts = [half[i : i + len(half) // 2] for half in halves for i in (0, len(half) // 2)]
        quarters = [[merged([side[i] for i in part]) for part in parts] for side in (real, generated)]
        if min(quarter.count for side in quarters for quarter in side) >= 2:
            splits.append(Split.of(*quarters))
    if len(splits) < LEAST_SPLITS:
        return None
    missing, rise = (sum(getattr(s, name) for s in splits) / len(splits) for name in ("attenuation", "rise"))
    rise = max(rise, SLOWEST * missing) or 1.0
    powers = [min(max(1 + (split.cross_rise - split.rise) / rise, 0.0), MOST_POWER) for split in splits]
    cross = torch.stack([split.distances(power) for split, power in zip(splits, powers, strict=True)])
    plain = torch.stack([split.plain for split in splits])
    if paired:
        estimates = (cross[:, 0, 1] + cross[:, 1, 0]) / 2
        between = ((plain[:, 0, 0] - plain[:, 1, 1]) / 2).square().mean()
        second_order = estimates.var()
    else:
        estimates = cross.mean((1, 2))
        of_real = cross[:, 0].sum(1) - cross[:, 1].sum(1)
        of_generated = cross[:, :, 0].sum(1) - cross[:, :, 1].sum(1)
        mixed = cross[:, 0, 0] - cross[:, 0, 1] - cross[:, 1, 0] + cross[:, 1, 1]
        between = ((of_real / 4).square() + (of_generated / 4).square()).mean()
        second_order = estimates.var() + (mixed / 4).square().mean()
    unbiased = float(estimates.mean())
    stderr = float((between - 2 * second_order).clamp(min=0) + second_order) ** 0.5
    first, second = (sum(split.reliability[side] for split in splits) / len(splits) for side in (0, 1))
    unreliable = SLACK * max(0.0, 1 - min(first, second)) * abs(unbiased)
    reach = float(student_t.ppf((1 + confidence) / 2, len(splits) - 1)) * stderr + unreliable
    counts = merged(real).count, merged(generated).count
    value = float(frechet_distance(merged(real), merged(generated)))
    return FrechetEstimate(value, unbiased, stderr, unbiased - reach, unbiased + reach, (first, second), counts)


def attenuations(groups: Sequence[Moments]) -> list[float]:
    """``1 - r`` of two samples of an eighth, a quarter and half of the clips each; NaN where that is below two clips.

    Raises:
        SoraError: as :func:`balanced_halves`.
    """
    trace, halves = float(merged(groups).covariance.trace()), balanced_halves(groups)
    found = []
    for parts, rows in ((4, 4), (2, 7), (1, 15)):
        apart = []
        for split in halves[:rows]:
            size = len(groups) // 2 // parts
            for part in range(parts):
                pair = [merged([groups[i] for i in half[part * size : (part + 1) * size]]) for half in split]
                if size and min(moments.count for moments in pair) >= 2:
                    a, b = (Sample.of(moments) for moments in pair)
                    apart.append((a.trace + b.trace) / 2 - a.overlap(b))
        found.append(sum(apart) / len(apart) / trace if apart and trace > 0 else math.nan)
    return found


def frechet_floor(groups: Sequence[Moments], clips: int, others: int) -> float | None:
    """What two independent sets of so many clips of one law are apart on average, by the real clips themselves.

    The means are apart by ``(1/n + 1/m) tr S``. What the covariances are apart is measured between eighths, quarters
    and halves of the real clips and extrapolated over the logarithm of their number, as the logit of ``1 - r``, to the
    harmonic mean of the two numbers.

    Returns:
        None where that is more than the number of real clips or less than a sixteenth of it, where too few clips are
        left in an eighth, or where the numbers differ and covariances are too unreliable for a harmonic mean to do.

    Raises:
        SoraError: as :func:`balanced_halves`.
    """
    whole = merged(groups)
    trace, harmonic = float(whole.covariance.trace()), 2 / (1 / clips + 1 / others)
    if trace == 0:
        return 0.0
    octaves = math.log2(2 * harmonic / whole.count)
    known = attenuations(groups)
    if any(math.isnan(share) for share in known) or not -3 <= octaves <= 1.05:
        return None
    eighth, quarter, half = (_logit(share) for share in known)
    bend = CURVATURE * (half - 2 * quarter + eighth)
    share = 1 / (1 + math.exp(-(half + octaves * (half - quarter) + octaves * (octaves + 1) / 2 * bend)))
    if max(clips, others) > EQUAL * min(clips, others) and 1 - share < LEAST_UNLIKE:
        return None
    return (1 / clips + 1 / others) * trace + 2 * trace * share


def clips_needed(groups: Sequence[Moments], reliability: float) -> int | None:
    """About how many clips of this law two sets need for their halves to be so reliable.

    By a line through the logit of ``1 - r`` over the logarithm of the number of clips: since it steepens, less may do.

    Returns:
        None where that cannot be told of so few clips.
    """
    count = merged(groups).count
    _, quarter, half = (_logit(share) for share in attenuations(groups))
    if not half < quarter:
        return None
    return math.ceil(count * 2 ** max(0.0, (half - _logit(1 - reliability)) / (quarter - half)))


def _logit(share: float) -> float:
    """NaN remains; rounding may leave a share of 0 or 1."""
    tiny = torch.finfo(torch.float64).eps
    return share if math.isnan(share) else math.log(max(share, tiny) / max(1 - share, tiny))
