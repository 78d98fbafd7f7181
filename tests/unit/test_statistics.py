"""The statistics of an ablation: against scipy, against numbers worked by hand, and against simulated truth."""

import math

import numpy as np
import pytest
from scipy import stats

from lightning_sora.ablation.statistics import (
    hierarchical_bootstrap,
    holm,
    judge,
    minimum_detectable_effect,
    paired,
    t_interval,
    t_test,
)
from lightning_sora.errors import SoraError

BASE = {0: 1.00, 1: 1.10, 2: 1.25, 3: 0.95}
LOWER = {0: 0.90, 1: 1.01, 2: 1.14, 3: 0.86}


def draws(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_t_test_is_scipys() -> None:
    expected = stats.ttest_rel(list(LOWER.values()), list(BASE.values()))
    differences = paired(LOWER, BASE)
    assert t_test(differences) == pytest.approx(expected.pvalue, rel=1e-12)
    interval = expected.confidence_interval(0.9)
    assert t_interval(differences, 0.9) == pytest.approx((interval.low, interval.high), rel=1e-12)


def test_pairing_is_by_seed_whatever_the_order() -> None:
    shuffled = {3: 0.86, 1: 1.01, 7: 5.0, 0: 0.90, 2: 1.14}
    assert paired(shuffled, BASE) == pytest.approx(paired(LOWER, BASE))


def test_holm_by_hand() -> None:
    """0.01 * 4, 0.02 * 3, 0.03 * 2 (not below the one before), 0.5."""
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_one_arm_needs_no_correction() -> None:
    (_, verdict) = judge({"base": BASE, "arm": LOWER}, "base", "min")
    assert verdict.adjusted_p == verdict.p_value
    assert verdict.interval is not None
    assert (verdict.interval.low, verdict.interval.high) == pytest.approx(t_interval(paired(LOWER, BASE), 0.95))
    assert verdict.interval.level == pytest.approx(0.95)


@pytest.mark.parametrize(("mode", "outcome"), [("min", "better"), ("max", "worse")])
def test_the_sign_follows_the_mode(mode: str, outcome: str) -> None:
    (_, verdict) = judge({"base": BASE, "arm": LOWER}, "base", mode)  # type: ignore[arg-type]
    assert verdict.outcome == outcome
    assert verdict.difference == pytest.approx(-0.0975)


@pytest.mark.parametrize("trial", range(30))
def test_intervals_agree_with_verdicts_for_any_number_of_arms(trial: int) -> None:
    generator = draws(trial)
    values = {"base": dict(enumerate(generator.normal(size=4)))}
    for arm in "abcde":
        shift = generator.normal(scale=2)
        values[arm] = {s: v + shift + generator.normal(scale=0.6) for s, v in values["base"].items()}
    for verdict in judge(values, "base", "min")[1:]:
        assert verdict.interval is not None
        outside = verdict.interval.low > 0 or verdict.interval.high < 0
        assert outside == (verdict.outcome != "inconclusive")


@pytest.mark.parametrize(("seeds", "arms"), [(3, 1), (5, 1), (3, 5)])
def test_equal_arms_are_told_apart_once_in_twenty_at_most(seeds: int, arms: int) -> None:
    """Family-wise: any false finding among the arms of one ablation."""
    generator, repeats = draws(seeds * 10 + arms), 800
    found = 0
    for _ in range(repeats):
        base = generator.normal(size=seeds)
        values = {"base": dict(enumerate(base))}
        values |= {f"a{i}": dict(enumerate(base + generator.normal(size=seeds))) for i in range(arms)}
        found += any(v.outcome in ("better", "worse") for v in judge(values, "base", "min"))
    low, high = stats.binomtest(found, repeats).proportion_ci(0.999)
    assert low <= 0.05
    if arms == 1:
        assert high >= 0.05  # the correction is exact for one arm, and on the safe side for several


def test_a_planted_effect_is_covered_as_often_as_claimed() -> None:
    generator, truth, repeats = draws(1), -0.3, 800
    covered, right, wrong = 0, 0, 0
    for _ in range(repeats):
        base = generator.normal(size=5)
        arm = base + truth + generator.normal(scale=0.1, size=5)
        (_, verdict) = judge({"base": dict(enumerate(base)), "arm": dict(enumerate(arm))}, "base", "min")
        assert verdict.interval is not None
        covered += verdict.interval.low <= truth <= verdict.interval.high
        right += verdict.outcome == "better"
        wrong += verdict.outcome == "worse"
    low, high = stats.binomtest(covered, repeats).proportion_ci(0.999)
    assert low <= 0.95 <= high
    assert right / repeats > 0.95
    assert wrong == 0


@pytest.mark.parametrize(("n", "alpha"), [(2, 0.05), (3, 0.05), (5, 0.01), (10, 0.05)])
def test_the_detectable_effect_is_detected_four_times_in_five(n: int, alpha: float) -> None:
    spread, repeats = 0.7, 20_000
    effect = minimum_detectable_effect(spread, n, alpha)
    samples = draws(n).normal(effect, spread, size=(repeats, n))
    t = samples.mean(axis=1) / (samples.std(axis=1, ddof=1) / math.sqrt(n))
    power = (np.abs(t) > stats.t.ppf(1 - alpha / 2, n - 1)).mean()
    assert power == pytest.approx(0.8, abs=0.015)


def test_one_seed_speaks_of_its_clips_and_says_so() -> None:
    clips = {"base": {0: {str(i): float(i) for i in range(20)}}, "arm": {0: {str(i): i - 0.5 for i in range(20)}}}
    clips["arm"][0]["3"] = 2.6
    (_, verdict) = judge({"base": {0: 9.5}, "arm": {0: 9.0}}, "base", "min", clips)
    assert (verdict.scope, verdict.outcome, verdict.p_value, verdict.detectable) == (
        "within seed", "inconclusive", None, None,
    )  # fmt: skip
    assert verdict.interval is not None
    assert verdict.interval.high < 0
    assert "says nothing of other seeds" in verdict.note


def test_the_bootstrap_of_many_seeds_covers_the_truth() -> None:
    generator, truth, repeats, covered = draws(4), 0.2, 150, 0
    for repeat in range(repeats):
        seeds = truth + generator.normal(scale=0.3, size=12)
        clips = [s + generator.normal(scale=0.5, size=30) for s in seeds]
        low, high = hierarchical_bootstrap(clips, 0.95, repeat, resamples=500)
        covered += low <= truth <= high
    assert covered / repeats > 0.85  # it is known to be narrow, and decides nothing


def test_the_bootstrap_repeats_itself() -> None:
    clips = [np.arange(5.0), np.arange(7.0)]
    assert hierarchical_bootstrap(clips, 0.9, 3) == hierarchical_bootstrap(clips, 0.9, 3)


def test_what_cannot_be_judged_is_inconclusive_and_says_why() -> None:
    values = {
        "base": {0: 1.0, 1: 2.0, 2: 3.0},
        "same": {0: 1.0, 1: 2.0, 2: 3.0},
        "diverged": {0: 1.0, 1: math.nan, 2: 2.0},
        "partial": {0: 0.5, 1: 1.6},
        "nothing": {},
    }
    verdicts = {v.arm: v for v in judge(values, "base", "min")}
    assert all(v.outcome == "inconclusive" for arm, v in verdicts.items() if arm != "base")
    assert "identical" in verdicts["same"].note
    assert "diverged" in verdicts["diverged"].note
    assert verdicts["partial"].seeds == 2
    assert "seed 2" in verdicts["partial"].note
    assert "no seed in common" in verdicts["nothing"].note


def test_a_constant_difference_is_believed() -> None:
    (_, verdict) = judge({"base": {0: 1.0, 1: 2.0, 2: 3.0}, "arm": {0: 1.5, 1: 2.5, 2: 3.5}}, "base", "min")
    assert (verdict.outcome, verdict.p_value) == ("worse", 0.0)


def test_without_a_baseline_there_is_no_verdict() -> None:
    with pytest.raises(SoraError, match="no finished trial"):
        judge({"base": {}, "arm": {0: 1.0}}, "base", "min")
