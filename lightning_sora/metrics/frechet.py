"""The Fréchet distance between Gaussians fitted to features.

``FD = |mu_1 - mu_2|^2 + tr S_1 + tr S_2 - 2 tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2)`` (Dowson and Landau 1982; Heusel et
al. 2017, eq. 6). All in float64; covariances divide by N - 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from scipy.stats import t as student_t
from torch import Tensor

from lightning_sora.errors import SoraError

NEGATIVE = 1e-6  # of the traces; a distance below minus this is no rounding error
SMALLEST_SHARE = 0.25  # of the clips, in the smallest subset of the extrapolation
LEAST_GROUPS = 4  # that it needs
POINTS, ROTATIONS = 10, 4  # sizes of subsets in it, and subsets of each size


@dataclass(frozen=True)
class Moments:
    """Sums that a mean and a covariance follow from: exact under any partition of the clips.

    Attributes:
        count: number of clips.
        total: sum of the features.
        outer: sum of their outer products.
    """

    count: int
    total: Float[Tensor, " width"]
    outer: Float[Tensor, "width width"]

    @classmethod
    def of(cls, features: Float[Tensor, "clips width"]) -> Moments:
        """Of features; NaN and infinity are refused.

        Raises:
            SoraError: a feature is not finite.
        """
        features = check_features(features)
        return cls(len(features), features.sum(0), features.T @ features)

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.total + other.total, self.outer + other.outer)

    def __sub__(self, other: Moments) -> Moments:
        return Moments(self.count - other.count, self.total - other.total, self.outer - other.outer)

    @property
    def width(self) -> int:
        return len(self.total)

    @property
    def mean(self) -> Float[Tensor, " width"]:
        return self.total / self.count

    @property
    def covariance(self) -> Float[Tensor, "width width"]:
        """With divisor N - 1.

        Raises:
            SoraError: fewer than two clips.
        """
        if self.count < 2:
            raise SoraError(f"a covariance needs at least 2 clips, got {self.count}; give more")
        centered = self.outer - torch.outer(self.total, self.total) / self.count
        return (centered + centered.T) / 2 / (self.count - 1)


def check_features(features: Float[Tensor, "clips width"]) -> Float[Tensor, "clips width"]:
    """The features in float64 on the CPU.

    Raises:
        SoraError: one is not finite.
    """
    if not features.isfinite().all():
        rows = (~features.isfinite().all(dim=1)).nonzero().flatten().tolist()
        raise SoraError(f"features of clips {rows[:8]} are not finite: no distance can be told; look at these clips")
    return features.detach().double().cpu()


def frechet_distance(first: Moments, second: Moments) -> Float[Tensor, ""]:
    """The distance between two sets of clips by their moments; not less than 0.

    Raises:
        SoraError: different widths, fewer than two clips, or a result that is negative beyond rounding.
    """
    if first.width != second.width:
        raise SoraError(f"features of widths {first.width} and {second.width} cannot be compared; use one extractor")
    return gaussian_distance(first.mean, first.covariance, second.mean, second.covariance)


def gaussian_distance(
    mean: Float[Tensor, " width"],
    covariance: Float[Tensor, "width width"],
    other_mean: Float[Tensor, " width"],
    other_covariance: Float[Tensor, "width width"],
) -> Float[Tensor, ""]:
    """The distance between two Gaussians.

    The root of the product is that of ``S_1^(1/2) S_2 S_1^(1/2)``, which is symmetric: its eigenvalues are real and
    need no matrix square root of a matrix that is not.
    """
    values, vectors = torch.linalg.eigh(covariance)
    half = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = half @ other_covariance @ half
    root = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    traces = covariance.trace() + other_covariance.trace()
    return _not_negative((mean - other_mean).square().sum() + traces - 2 * root, traces)


def frechet_distance_of_few(
    first: Float[Tensor, "clips width"], second: Float[Tensor, "others width"]
) -> Float[Tensor, ""]:
    """The same distance from features, at the cost of the number of clips rather than the width.

    ``tr (S_1^(1/2) S_2 S_1^(1/2))^(1/2)`` is the nuclear norm of ``X Y^T / sqrt((n - 1)(m - 1))`` for centred
    features X, Y: exact, and faster where there are fewer clips than features.

    Raises:
        SoraError: fewer than two clips on a side, or features that are not finite.
    """
    first, second = check_features(first), check_features(second)
    if min(len(first), len(second)) < 2:
        raise SoraError(f"a distance needs at least 2 clips a side, got {len(first)} and {len(second)}; give more")
    a, b = first - first.mean(0), second - second.mean(0)
    traces = a.square().sum() / (len(a) - 1) + b.square().sum() / (len(b) - 1)
    root = torch.linalg.svdvals(a @ b.T).sum() / ((len(a) - 1) * (len(b) - 1)) ** 0.5
    return _not_negative((first.mean(0) - second.mean(0)).square().sum() + traces - 2 * root, traces)


def _not_negative(distance: Float[Tensor, ""], traces: Float[Tensor, ""]) -> Float[Tensor, ""]:
    if distance < -NEGATIVE * traces:
        raise SoraError(
            f"the Fréchet distance came out as {float(distance):.3g}, below zero beyond rounding (traces "
            f"{float(traces):.3g}): the moments are not those of real features; compute them anew in float64"
        )
    return distance.clamp(min=0)


@dataclass(frozen=True)
class Estimate:
    """A statistic of two sets of clips, with what is known of its error.

    Attributes:
        value: as defined, on all clips; biased upward by small numbers of clips.
        unbiased: less the bias of few clips; may be negative.
        stderr: of ``unbiased``.
        low, high: the interval of the given confidence around ``unbiased``.
    """

    value: float
    unbiased: float
    stderr: float
    low: float
    high: float


def jackknife(
    value: float,
    sides: Sequence[tuple[Sequence[int], Sequence[float]]],
    confidence: float = 0.95,
) -> Estimate:
    """The delete-group jackknife for groups of unequal size (Busing, Meijer and van der Leeden 1999).

    Each side is (sizes of its groups, the statistic without each group). Sides are independent samples: their biases
    and variances add up. The percentile bootstrap is no substitute: resampling adds the bias a second time.

    Raises:
        SoraError: fewer than two groups on a side.
    """
    unbiased, variance, least = value, 0.0, None
    for sizes, without in sides:
        if len(sizes) < 2:
            raise SoraError(f"an interval needs at least 2 groups of clips, got {len(sizes)}; give more clips")
        size, left = torch.tensor(sizes, dtype=torch.float64), torch.tensor(without, dtype=torch.float64)
        ratio = size.sum() / size
        estimate = len(size) * value - ((1 - 1 / ratio) * left).sum()
        pseudo = ratio * value - (ratio - 1) * left
        unbiased += float(estimate) - value
        variance += float(((pseudo - estimate).square() / (ratio - 1)).mean())
        least = min(least or len(size), len(size))
    assert least is not None, "a statistic has at least one side"
    stderr = variance**0.5
    reach = float(student_t.ppf((1 + confidence) / 2, least - 1)) * stderr
    return Estimate(value, unbiased, stderr, unbiased - reach, unbiased + reach)


def frechet_infinity(real: Sequence[Moments], generated: Sequence[Moments]) -> float:
    """The distance extrapolated to endless clips: the intercept of a line through ``FD_n`` over ``1/n``.

    Both sides are cut to about the same share, from a quarter of the groups to all, with weights n (after Chong and
    Forsyth 2020, who cut one side alone and keep the other's bias).

    Raises:
        SoraError: fewer than 4 groups on a side.
    """
    real, generated = _filled(real), _filled(generated)
    groups = min(len(real), len(generated))
    if groups < LEAST_GROUPS:
        raise SoraError(
            f"an extrapolation needs at least {LEAST_GROUPS} groups of clips, got {groups}; give more clips"
        )
    inverse, distance, weight = [], [], []
    for share in torch.linspace(SMALLEST_SHARE, 1.0, POINTS).tolist():
        for rotation in range(ROTATIONS if share < 1 else 1):
            subsets = [_rotated(side, share, rotation / ROTATIONS) for side in (real, generated)]
            counts = [subset.count for subset in subsets]
            if min(counts) < 2:  # small groups of few clips
                continue
            inverse.append(sum(1 / count for count in counts) / 2)
            distance.append(float(frechet_distance(*subsets)))
            weight.append(1 / inverse[-1])
    x, y, w = (torch.tensor(values, dtype=torch.float64) for values in (inverse, distance, weight))
    x_mean, y_mean = (w * x).sum() / w.sum(), (w * y).sum() / w.sum()
    slope = (w * (x - x_mean) * (y - y_mean)).sum() / (w * (x - x_mean).square()).sum()
    return float(y_mean - slope * x_mean)


def divisible(sizes: Sequence[int]) -> bool:
    """Whether two clips are left whichever group is left out, and so a distance."""
    filled = [size for size in sizes if size]
    return len(filled) >= 2 and sum(filled) - max(filled) >= 2


def merged(groups: Sequence[Moments]) -> Moments:
    """The moments of all groups together.

    Raises:
        SoraError: there are none.
    """
    if not groups:
        raise SoraError("there are no clips to measure; add some to both sides")
    count, total, outer = groups[0].count, groups[0].total, groups[0].outer
    for group in groups[1:]:
        count, total, outer = count + group.count, total + group.total, outer + group.outer
    return Moments(count, total, outer)


def _filled(groups: Sequence[Moments]) -> list[Moments]:
    return [group for group in groups if group.count]


def _rotated(groups: list[Moments], share: float, start: float) -> Moments:
    size = max(1, round(share * len(groups)))
    first = int(start * len(groups))
    return merged([groups[(first + i) % len(groups)] for i in range(size)])


def group_of(ids: Sequence[str], groups: int) -> Int[Tensor, " clips"]:
    """The group of each clip: a hash of its id, so that any order and any partition over ranks gives the same."""
    return torch.tensor([clip_hash(name) % groups for name in ids], dtype=torch.int64)


def clip_hash(name: str) -> int:
    """A 63-bit hash of a clip's id."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little") >> 1
