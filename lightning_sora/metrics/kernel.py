"""Kernel distances between sets of clips: unbiased MMD with a cubic kernel (KVD) and JEDi's squared one."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.metrics.frechet import Estimate, Moments, check_features, jackknife

JEDI_SCALE = 100.0


def polynomial_kernel(
    first: Float[Tensor, "clips width"], second: Float[Tensor, "others width"], degree: int = 3, offset: float = 1.0
) -> Float[Tensor, "clips others"]:
    """``(x . y / width + offset) ** degree``."""
    return (first @ second.T / first.shape[1] + offset) ** degree


def kernel_distance(
    first: Float[Tensor, "clips width"],
    second: Float[Tensor, "others width"],
    degree: int = 3,
    offset: float = 1.0,
    paired: bool = False,
) -> Float[Tensor, ""]:
    """Unbiased squared maximum mean discrepancy over all pairs (Gretton et al. 2012, eq. 3; kernel of KID).

    Negative values are possible: the estimate is centred on zero where the distributions are equal.

    Args:
        paired: row i of both sides belong together, and a clip is not compared with its own partner (eq. 4): that
            would say that alike pairs are alike distributions.

    Raises:
        SoraError: fewer than two clips on a side, features that are not finite, or pairs without a partner.
    """
    first, second = check_features(first), check_features(second)
    n, m = len(first), len(second)
    if min(n, m) < 2 or (paired and n != m):
        raise SoraError(
            f"a kernel distance needs at least 2 clips a side, and as many of both where they are pairs, got {n} and "
            f"{m}; give more"
        )
    within = [polynomial_kernel(side, side, degree, offset) for side in (first, second)]
    across = polynomial_kernel(first, second, degree, offset)
    mean = across.sum() / (n * m)
    if paired:
        mean = (across.sum() - across.trace()) / (n * (n - 1))
    own = [(kernel.sum() - kernel.trace()) / (len(kernel) * (len(kernel) - 1)) for kernel in within]
    return own[0] + own[1] - 2 * mean


def kernel_estimate(
    first: Float[Tensor, "clips width"],
    second: Float[Tensor, "others width"],
    confidence: float = 0.95,
    paired: bool = False,
) -> Estimate:
    """The same with the interval of a delete-one jackknife, which no name and no order of clips changes.

    Args:
        paired: as in :func:`kernel_distance`; pairs are left out together. Else the sides are independent.

    Raises:
        SoraError: as :func:`kernel_distance`, or fewer than three clips on a side.
    """
    first, second = check_features(first), check_features(second)
    n, m = len(first), len(second)
    value = float(kernel_distance(first, second, paired=paired))
    if min(n, m) < 3:
        raise SoraError(f"the interval of a kernel distance needs at least 3 clips a side, got {n} and {m}; give more")
    across = polynomial_kernel(first, second)
    own, own_without = zip(
        *(_mean_without_each(polynomial_kernel(side, side)) for side in (first, second)), strict=True
    )
    if paired:
        between = _mean_without_each(across)[1]
        return jackknife(value, [([1] * n, (own_without[0] + own_without[1] - 2 * between).tolist())], confidence)
    sides = []
    for this, kernel in ((1, across.T), (0, across)):
        # Without one clip of this side: its own pairs and the pairs across change, the other's own do not.
        between = (kernel.sum() - kernel.sum(1)) / ((len(kernel) - 1) * kernel.shape[1])
        sides.append(([1] * len(kernel), (own_without[this] + own[1 - this] - 2 * between).tolist()))
    return jackknife(value, sides, confidence)


def _mean_without_each(
    kernel: Float[Tensor, "clips clips"],
) -> tuple[Float[Tensor, ""], Float[Tensor, " clips"]]:
    """The mean off the diagonal, and the same without each clip."""
    count = len(kernel)
    off = kernel - kernel.diag().diag()
    left = off.sum() - off.sum(0) - off.sum(1)
    return off.sum() / (count * (count - 1)), left / ((count - 1) * (count - 2))


def jedi_distance(real: Moments, generated: Moments) -> Float[Tensor, ""]:
    """JEDi's form: 100 times the biased MMD^2 with ``(x . y / width) ** 2`` (Luo et al. 2024).

    That kernel's feature map is ``x x^T``, so it is ``100 |M_1 - M_2|_F^2 / width^2`` for uncentred second moments:
    exact from sums, without any pair being formed.

    Raises:
        SoraError: different widths, or no clips.
    """
    if real.width != generated.width or not min(real.count, generated.count):
        raise SoraError(
            f"{real.count} clips of width {real.width} and {generated.count} of width {generated.width} cannot be "
            "compared; give clips on both sides and one extractor"
        )
    difference = real.outer / real.count - generated.outer / generated.count
    return JEDI_SCALE * difference.square().sum() / real.width**2
