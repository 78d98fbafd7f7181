"""What the statistics say of one arm: the nouns that judging and showing share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Interval:
    """A confidence interval of a difference.

    Attributes:
        level: for example 0.95.
        method: "t" or "bootstrap", in words for the reader.
    """

    low: float
    high: float
    level: float
    method: str


@dataclass(frozen=True)
class Verdict:
    """One arm against the baseline.

    Attributes:
        mean: of the arm's metric over the seeds that the baseline has too.
        baseline_mean: of the baseline's metric over the same seeds.
        difference: mean paired difference, arm minus baseline; ``mean - baseline_mean``.
        interval: of the difference over seeds, or within one seed; None where it cannot be had.
        p_value, adjusted_p: two-sided; the second after Holm's correction over arms; None without a spread over seeds.
        detectable: smallest true difference that this design would find 4 times in 5, in the metric's units.
        seeds: how many are paired.
        scope: what the interval speaks of: "over seeds" or "within seed" (which says nothing of other seeds).
        note: what a reader must know beside it; may be empty.
    """

    arm: str
    outcome: Literal["baseline", "better", "worse", "inconclusive"]
    mean: float
    baseline_mean: float
    difference: float
    interval: Interval | None
    clip_interval: Interval | None
    p_value: float | None
    adjusted_p: float | None
    detectable: float | None
    seeds: int
    scope: Literal["over seeds", "within seed", "none"]
    note: str = ""
