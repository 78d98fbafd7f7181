"""From values per arm, seed and clip to verdicts.

The unit is the seed: arms are paired within it, because they share data order, timesteps, noise and initial
values, and a difference is believed when it is large against its spread over seeds (Bouthillier et al. 2021,
arXiv:2103.03098). Clips of one training are no independent trainings: an interval over clips speaks of that training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


def judge(
    values: Mapping[str, Values],
    baseline: str,
    mode: Mode,
    clip_scores: Mapping[str, ClipScores] | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> list[Verdict]:
    """Each arm against the baseline.

    The verdict is Student's paired t-test over seeds at ``1 - level``, two-sided, after Holm's correction over arms.
    The interval is widened so that it agrees: it leaves out zero exactly where the verdict is not "inconclusive".

    Args:
        values: arm -> seed -> the metric.
        mode: whether less or more of the metric is better.
        clip_scores: arm -> seed -> clip -> the metric, for intervals over clips.
        seed: of the bootstrap.

    Returns:
        the baseline first, then the other arms in order.

    Raises:
        SoraError: no value of the baseline.
    """
    if baseline not in values or not values[baseline]:
        raise SoraError(f"baseline {baseline!r} has no finished trial; nothing can be compared to it")
    others = [arm for arm in values if arm != baseline]
    differences = {arm: paired(values[arm], values[baseline]) for arm in others}
    raw = {arm: t_test(d) for arm, d in differences.items()}
    tested = [arm for arm in others if raw[arm] is not None]
    adjusted = dict(zip(tested, holm([float(raw[arm] or 0.0) for arm in tested]), strict=True))
    verdicts = [_baseline(baseline, values[baseline])]
    for arm in others:
        scores = clip_scores or {}
        clips = paired_clips(scores.get(arm, {}), scores.get(baseline, {}))
        verdicts.append(
            _verdict(arm, values, baseline, mode, raw[arm], adjusted.get(arm), clips, level, max(1, len(tested)), seed)
        )
    return verdicts


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


def t_test(differences: NDArray[np.float64]) -> float | None:
    """Two-sided p-value of a zero mean (Student 1908); None with fewer than two, all zero, or not finite."""
    if len(differences) < 2 or not np.isfinite(differences).all() or not differences.any():
        return None
    spread = differences.std(ddof=1)
    if spread <= 1e-12 * abs(differences.mean()):
        return 0.0
    t = differences.mean() / (spread / math.sqrt(len(differences)))
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))


def t_interval(differences: NDArray[np.float64], level: float) -> tuple[float, float]:
    """``mean +- t * s / sqrt(n)`` with ``n - 1`` degrees of freedom (Student 1908)."""
    n = len(differences)
    half = stats.t.ppf((1 + level) / 2, n - 1) * differences.std(ddof=1) / math.sqrt(n)
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
        arm=arm, outcome="baseline", mean=_mean(values), difference=0.0, interval=None, clip_interval=None,
        p_value=None, adjusted_p=None, detectable=None, seeds=len(values), scope="none",
    )  # fmt: skip


def _verdict(
    arm: str,
    values: Mapping[str, Values],
    baseline: str,
    mode: Mode,
    p: float | None,
    adjusted: float | None,
    clips: list[NDArray[np.float64]],
    level: float,
    comparisons: int,
    seed: int,
) -> Verdict:
    differences = paired(values[arm], values[baseline])
    n, alpha = len(differences), 1 - level
    notes = _notes(values[arm], values[baseline], differences)
    interval = clip_interval = detectable = None
    scope: Literal["over seeds", "within seed", "none"] = "none"
    outcome: Literal["better", "worse", "inconclusive"] = "inconclusive"
    finite = n > 0 and bool(np.isfinite(differences).all())
    if finite and n >= 2:
        scope = "over seeds"
        factor = min(float(comparisons), adjusted / p) if p and adjusted else float(comparisons)
        wide = 1 - alpha / factor
        interval = Interval(*t_interval(differences, wide), wide, "paired t over seeds")
        detectable = minimum_detectable_effect(float(differences.std(ddof=1)), n, alpha / comparisons)
        if adjusted is not None and adjusted <= alpha:
            outcome = "better" if (differences.mean() < 0) == (mode == "min") else "worse"
    if finite and clips:
        if n == 1 and len(clips[0]) >= 2:
            scope = "within seed"
            interval = Interval(*t_interval(clips[0], level), level, "paired t over clips of one seed")
            notes.append("one seed: the interval is over its validation clips and says nothing of other seeds")
        elif n >= 2:
            clip_interval = Interval(
                *hierarchical_bootstrap(clips, level, seed), level, "bootstrap of seeds and their clips"
            )
    elif finite and n == 1:
        notes.append("one seed and no scores of clips: there is no interval")
    return Verdict(
        arm=arm, outcome=outcome, mean=_mean(values[arm]),
        difference=float(differences.mean()) if n else math.nan,
        interval=interval, clip_interval=clip_interval, p_value=p, adjusted_p=adjusted, detectable=detectable,
        seeds=n, scope=scope, note="; ".join(notes),
    )  # fmt: skip


def _notes(arm: Values, baseline: Values, differences: NDArray[np.float64]) -> list[str]:
    notes = []
    missing = sorted(baseline.keys() - arm.keys())
    if missing:
        notes.append(f"no result for seed {', '.join(map(str, missing))}")
    if not len(differences):
        notes.append("no seed in common with the baseline")
    elif not np.isfinite(differences).all():
        notes.append("a value is not finite: a training diverged")
    elif not differences.any():
        notes.append("identical to the baseline in every value")
    return notes


def _mean(values: Values) -> float:
    return float(np.mean(list(values.values()))) if values else math.nan
