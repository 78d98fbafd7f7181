"""Means over clips, with intervals by a keyed bootstrap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats

from lightning_sora.randomness import generator

LEVEL = 0.95
DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean over clips and its interval."""

    mean: float
    low: float
    high: float
    clips: int


def estimate(
    values: Sequence[float], *key: str, share: bool = False, difference: bool = False, seed: int = 0
) -> Estimate | None:
    """The mean with its percentile bootstrap interval over clips; None of no clips.

    Args:
        key: of the draws.
        share: values in [0, 1]. Where all are equal a bootstrap would give no width, and of all-or-none the interval is
            that of Clopper and Pearson.
        difference: of two shares, in [-1, 1]. Where all are 0, it is bounded by the share of clips that may differ,
            by the same interval.
    """
    if not values:
        return None
    known = torch.tensor(list(values), dtype=torch.float64)
    mean, count = float(known.mean()), len(known)
    edge = float(stats.beta.ppf((1 - LEVEL) / 2, count, 1))
    if share and set(values) in ({0.0}, {1.0}):
        return Estimate(mean, edge, 1.0, count) if mean else Estimate(mean, 0.0, 1 - edge, count)
    if difference and set(values) == {0.0}:
        return Estimate(mean, edge - 1, 1 - edge, count)
    draws = torch.randint(count, (DRAWS, count), generator=generator(seed, "bootstrap", *key))
    means = known[draws].mean(dim=1).numpy()
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(mean, float(low), float(high), count)


def way(score: float, ceiling: float, floor: float) -> float:
    """How far a score is on the way from the floor, 0, to the ceiling, 1; nan where they are one."""
    return (score - floor) / (ceiling - floor) if ceiling != floor else math.nan
