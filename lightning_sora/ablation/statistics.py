"""From values per arm, seed and clip to verdicts.

The unit is the seed: arms are paired within it, because they share data order, timesteps, noise and initial
values, and a difference is believed when it is large against its spread over seeds (Bouthillier et al. 2021,
arXiv:2103.03098). Clips of one training are no independent trainings: an interval over clips speaks of that training.

A share of clips moves in steps, so that a few seeds may differ by exactly as much, which proves nothing: a spread below
one clip's answer counts as one clip's answer (``benchmarks/verdicts.py`` measures what errors that leaves).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from lightning_sora.ablation.verdict import Interval, Verdict
from lightning_sora.directions import Mode
from lightning_sora.errors import SoraError

Values = Mapping[int, float]
ClipScores = Mapping[int, Mapping[str, float]]
RESAMPLES = 2000
DRAWS_AT_ONCE = 2_000_000
POWER = 0.8
#: Metrics are logged in float32: differences that are equal may differ by this much of a value.
ROUNDING = 4 * float(np.finfo(np.float32).eps)


def judge(
    values: Mapping[str, Values],
    baseline: str,
    mode: Mode,
    clip_scores: Mapping[str, ClipScores] | None = None,
    level: float = 0.95,
    seed: int = 0,
    clips: int | None = None,
) -> list[Verdict]:
    """Each arm against the baseline.

    The verdict is Student's paired t-test over seeds at ``1 - level``, two-sided, after Holm's correction over arms.
    The interval is widened so that it agrees: it leaves out zero exactly where the verdict is not "inconclusive".

    Args:
        values: arm -> seed -> the metric.
        mode: whether less or more of the metric is better.
        clip_scores: arm -> seed -> clip -> the metric, for intervals over clips.
        seed: of the bootstrap.
        clips: that the metric is over, where there are no scores of them.

    Returns:
        the baseline first, then the other arms in order.

    Raises:
        SoraError: no value of the baseline.
    """
    if baseline not in values or not values[baseline]:
        raise SoraError(f"baseline {baseline!r} has no finished trial; nothing can be compared to it")
    others = [arm for arm in values if arm != baseline]
    step = one_answer(values, clip_scores or {}, clips)
    contrasts = {arm: Contrast.between(values[arm], values[baseline], step) for arm in others}
    raw = {arm: contrast.p_value for arm, contrast in contrasts.items()}
    tested = [arm for arm in others if raw[arm] is not None]
    adjusted = dict(zip(tested, holm([float(raw[arm] or 0.0) for arm in tested]), strict=True))
    verdicts = [_baseline(baseline, values[baseline])]
    for arm in others:
        scores = clip_scores or {}
        by_clip = paired_clips(scores.get(arm, {}), scores.get(baseline, {}))
        verdicts.append(
            _verdict(arm, values, baseline, mode, contrasts[arm], adjusted.get(arm), by_clip, level,
                     max(1, len(tested)), seed)
        )  # fmt: skip
    return verdicts


@dataclass(frozen=True)
class Contrast:
    """Paired differences of one arm, and their spread.

    Attributes:
        differences: arm minus baseline, by seed.
        spread: their standard deviation; not below what one clip's answer moves. None where it cannot be known: fewer
            than two seeds, a value that is not finite, or differences that are all the same.
        lifted: whether the spread is that of one clip's answer.
    """

    differences: NDArray[np.float64]
    spread: float | None
    lifted: bool = False

    @classmethod
    def between(cls, arm: Values, baseline: Values, step: float = 0.0) -> Contrast:
        """The contrast on the seeds that both have.

        Args:
            step: of :func:`one_answer`.
        """
        differences = paired(arm, baseline)
        if len(differences) < 2 or not np.isfinite(differences).all():
            return cls(differences, None)
        seen = float(differences.std(ddof=1))
        size = max(abs(values[s]) for values in (arm, baseline) for s in arm.keys() & baseline.keys())
        if seen <= ROUNDING * size and step <= ROUNDING * size:
            return cls(differences, None)
        return cls(differences, max(seen, step), lifted=step > seen)

    @property
    def p_value(self) -> float | None:
        """Two-sided p-value of a zero mean (Student 1908); None without a spread, or where every difference is zero."""
        n = len(self.differences)
        if self.spread is None or not self.differences.any():
            return None
        t = self.differences.mean() / (self.spread / math.sqrt(n))
        return float(2 * stats.t.sf(abs(t), n - 1))


def one_answer(values: Mapping[str, Values], clip_scores: Mapping[str, ClipScores], clips: int | None = None) -> float:
    """How little the answer to a single clip can move the metric: no spread over seeds below it can be told from none.

    With scores of clips it is the least difference between two scores, over the number of clips, which is next to
    nothing where scores are not counted. Without them it is one clip's share, if every value is a whole number of
    shares, as a fraction or in percent.

    Returns:
        0 where it is not known.
    """
    by_seed = [scores for arm in clip_scores.values() for scores in arm.values() if scores]
    if by_seed:
        known = np.unique(np.concatenate([np.fromiter(scores.values(), np.float64) for scores in by_seed]))
        gaps = np.diff(known[np.isfinite(known)])
        gaps = gaps[gaps > ROUNDING * np.abs(known).max()] if len(gaps) else gaps
        return float(gaps.min()) / min(map(len, by_seed)) if len(gaps) else 0.0
    every = np.array([value for arm in values.values() for value in arm.values()])
    if not clips or not np.isfinite(every).all():
        return 0.0
    share = (100 if np.abs(every).max(initial=0) > 1 else 1) / clips
    return share if np.abs(every / share - np.round(every / share)).max(initial=0) < 1e-3 else 0.0


def paired(arm: Values, baseline: Values) -> NDArray[np.float64]:
    """Arm minus baseline on the seeds that both have, in order of seeds."""
    return np.array([arm[s] - baseline[s] for s in sorted(arm.keys() & baseline.keys())], dtype=np.float64)


def paired_clips(arm: ClipScores, baseline: ClipScores) -> list[NDArray[np.float64]]:
    """Arm minus baseline per clip that both have, one array per seed."""
    found = []
    for s in sorted(arm.keys() & baseline.keys()):
        common = sorted(arm[s].keys() & baseline[s].keys())
        if common:
            found.append(np.array([arm[s][c] - baseline[s][c] for c in common], dtype=np.float64))
    return found


def t_interval(differences: NDArray[np.float64], level: float, spread: float | None = None) -> tuple[float, float]:
    """``mean +- t * s / sqrt(n)`` with ``n - 1`` degrees of freedom (Student 1908).

    Args:
        spread: ``s``; by default that of the differences.
    """
    n = len(differences)
    spread = float(differences.std(ddof=1)) if spread is None else spread
    half = stats.t.ppf((1 + level) / 2, n - 1) * spread / math.sqrt(n)
    return float(differences.mean() - half), float(differences.mean() + half)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values that keep the chance of *any* false finding, in their order (Holm 1979, Scand. J. Statist. 6)."""
    order = np.argsort(p_values, kind="stable")
    adjusted = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return [float(p) for p in adjusted]


def minimum_detectable_effect(spread: float, n: int, alpha: float, power: float = POWER) -> float:
    """The true mean difference that a paired t-test of ``n`` seeds finds with this power.

    Args:
        spread: standard deviation of the paired difference over seeds.
        alpha: two-sided level, corrected for the number of arms.
    """
    return _standardised_effect(n, alpha, power) * spread / math.sqrt(n)


@cache
def _standardised_effect(n: int, alpha: float, power: float) -> float:
    """The same in units of the mean's standard error."""
    critical = stats.t.ppf(1 - alpha / 2, n - 1)
    # The noncentral t as a mixture of normals over the sample deviation: scipy's own fails with one degree of freedom.
    deviations = np.sqrt(stats.chi2.ppf((np.arange(2000) + 0.5) / 2000, n - 1) / (n - 1))

    def found(effect: float) -> float:
        bounds = critical * deviations
        return float((stats.norm.sf(bounds - effect) + stats.norm.cdf(-bounds - effect)).mean())

    low, high = 0.0, 1.0
    while found(high) < power and high < 1e6:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if found(middle) < power else (low, middle)
    return high


def hierarchical_bootstrap(
    clips: Sequence[NDArray[np.float64]], level: float, seed: int, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile interval of the mean difference: seeds are drawn again, then clips within each (Efron 1979).

    With few seeds it is too narrow, which is why it decides nothing; it shows how much clips alone move the mean.
    """
    draws = np.random.default_rng(seed)
    lengths = np.array([len(c) for c in clips])
    padded = np.zeros((len(clips), lengths.max()))
    for row, c in zip(padded, clips, strict=True):
        row[: len(c)] = c
    parts = []
    at_once = max(1, DRAWS_AT_ONCE // padded.size)
    for begun in range(0, resamples, at_once):
        chosen = draws.integers(0, len(clips), size=(min(at_once, resamples - begun), len(clips)))
        shape = (*chosen.shape, padded.shape[1])
        which = (draws.random(shape, dtype=np.float32) * lengths[chosen][..., None]).astype(np.int32)
        values = padded[chosen[..., None], which]
        kept = np.arange(padded.shape[1]) < lengths[chosen][..., None]
        parts.append((np.where(kept, values, 0.0).sum(axis=2) / lengths[chosen]).mean(axis=1))
    means = np.concatenate(parts)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _baseline(arm: str, values: Values) -> Verdict:
    return Verdict(
        arm=arm, outcome="baseline", mean=_mean(values), baseline_mean=_mean(values), difference=0.0, interval=None,
        clip_interval=None, p_value=None, adjusted_p=None, detectable=None, seeds=len(values), scope="none",
    )  # fmt: skip


def _verdict(
    arm: str,
    values: Mapping[str, Values],
    baseline: str,
    mode: Mode,
    contrast: Contrast,
    adjusted: float | None,
    clips: list[NDArray[np.float64]],
    level: float,
    comparisons: int,
    seed: int,
) -> Verdict:
    differences, spread, p = contrast.differences, contrast.spread, contrast.p_value
    n, alpha = len(differences), 1 - level
    shared = values[arm].keys() & values[baseline].keys()
    of_arm, of_baseline = ({s: values[a][s] for s in shared} for a in (arm, baseline))
    notes = _notes(values[arm], values[baseline], contrast)
    interval = clip_interval = detectable = None
    scope: Literal["over seeds", "within seed", "none"] = "none"
    outcome: Literal["better", "worse", "inconclusive"] = "inconclusive"
    finite = n > 0 and bool(np.isfinite(differences).all())
    if spread is not None:
        scope = "over seeds"
        factor = min(float(comparisons), adjusted / p) if p and adjusted else float(comparisons)
        wide = 1 - alpha / factor
        interval = Interval(*t_interval(differences, wide, spread), wide, "paired t over seeds")
        detectable = minimum_detectable_effect(spread, n, alpha / comparisons)
        if adjusted is not None and adjusted <= alpha:
            outcome = "better" if (differences.mean() < 0) == (mode == "min") else "worse"
    if finite and clips:
        if n == 1 and len(clips[0]) >= 2 and np.ptp(clips[0]) > 0:
            scope = "within seed"
            interval = Interval(*t_interval(clips[0], level), level, "paired t over clips of one seed")
            notes.append("one seed: the interval is over its validation clips and says nothing of other seeds")
        elif n == 1:
            notes.append("one seed, of which no two clips differ in their difference: there is no interval")
        else:
            low, high = hierarchical_bootstrap(clips, level, seed)
            if high > low:
                clip_interval = Interval(low, high, level, "bootstrap of seeds and their clips")
    elif finite and n == 1:
        notes.append("one seed and no scores of clips: there is no interval")
    return Verdict(
        arm=arm, outcome=outcome, mean=_mean(of_arm), baseline_mean=_mean(of_baseline),
        difference=float(differences.mean()) if n else math.nan,
        interval=interval, clip_interval=clip_interval, p_value=p, adjusted_p=adjusted, detectable=detectable,
        seeds=n, scope=scope, note="; ".join(notes),
    )  # fmt: skip


def _notes(arm: Values, baseline: Values, contrast: Contrast) -> list[str]:
    notes = []
    differences, shared = contrast.differences, arm.keys() & baseline.keys()
    missing, others = (", ".join(map(str, sorted(a.keys() - b.keys()))) for a, b in ((baseline, arm), (arm, baseline)))
    if missing:
        notes.append(f"no result for seed {missing}")
        if shared:
            notes.append(f"without it the baseline has {_mean({s: baseline[s] for s in shared}):.4g}")
    if others:
        notes.append(f"seed {others} is left out, of which the baseline has no result")
    if not len(differences):
        notes.append("no seed in common with the baseline")
    elif not np.isfinite(differences).all():
        notes.append("a value is not finite: a training diverged")
    elif not differences.any():
        notes.append("identical to the baseline in every value")
    elif contrast.lifted:
        notes.append(f"the spread over seeds is counted as {contrast.spread:.3g}, what a single clip's answer moves")
    elif contrast.spread is None and len(differences) > 1:
        notes.append("every seed differs by the same: without a spread nothing is proven; run more seeds")
    return notes


def _mean(values: Values) -> float:
    return float(np.mean(list(values.values()))) if values else math.nan
