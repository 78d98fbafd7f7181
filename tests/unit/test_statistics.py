"""The statistics of an ablation: against scipy, against numbers worked by hand, and against simulated truth."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from lightning_sora.ablation.statistics import (
    Contrast,
    hierarchical_bootstrap,
    holm,
    judge,
    minimum_detectable_effect,
    one_answer,
    paired,
    t_interval,
)
from lightning_sora.errors import SoraError

BASE = {0: 1.00, 1: 1.10, 2: 1.25, 3: 0.95}
LOWER = {0: 0.90, 1: 1.01, 2: 1.14, 3: 0.86}


def draws(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_the_t_test_is_scipys() -> None:
    expected = stats.ttest_rel(list(LOWER.values()), list(BASE.values()))
    differences = paired(LOWER, BASE)
    assert Contrast.between(LOWER, BASE).p_value == pytest.approx(expected.pvalue, rel=1e-12)
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


@pytest.mark.slow
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


@pytest.mark.parametrize("logged", [float, lambda v: float(np.float32(v))], ids=["float64", "float32"])
def test_equal_differences_alone_prove_nothing(logged: Callable[[float], float]) -> None:
    """Not even where they are equal but for the rounding of what was logged."""
    values = {"base": {0: 0.61, 1: 0.72, 2: 0.83}, "arm": {0: 0.71, 1: 0.82, 2: 0.93}}
    values = {arm: {s: logged(v) for s, v in of.items()} for arm, of in values.items()}
    (_, verdict) = judge(values, "base", "max")
    assert (verdict.outcome, verdict.p_value, verdict.interval) == ("inconclusive", None, None)
    assert "without a spread nothing is proven" in verdict.note


def test_no_spread_of_a_share_is_below_one_clips_answer() -> None:
    """Of 128 clips two seeds both answer 45 more: t = 45 sqrt(2) with one degree of freedom, by hand."""
    base, arm = {0: 78 / 128, 1: 76 / 128}, {0: 123 / 128, 1: 121 / 128}
    (_, verdict) = judge({"base": base, "arm": arm}, "base", "max", clips=128)
    assert verdict.p_value == pytest.approx(1 - 2 / math.pi * math.atan(45 * math.sqrt(2)))
    assert verdict.outcome == "better"
    assert verdict.interval is not None
    assert verdict.interval.high - verdict.interval.low == pytest.approx(2 * 12.7062 / 128 / math.sqrt(2), rel=1e-4)
    assert "what a single clip's answer moves" in verdict.note
    percent = {name: {s: 100 * v for s, v in of.items()} for name, of in (("base", base), ("arm", arm))}
    assert judge(percent, "base", "max", clips=128)[1].p_value == pytest.approx(verdict.p_value)
    scores = {n: {s: {str(i): float(i < 128 * v) for i in range(128)} for s, v in of.items()}
              for n, of in (("base", base), ("arm", arm))}  # fmt: skip
    assert judge({"base": base, "arm": arm}, "base", "max", scores)[1].p_value == pytest.approx(verdict.p_value)


def test_what_one_answer_moves() -> None:
    shares = {"base": {0: 0.25, 1: 0.5}}
    assert one_answer(shares, {}, 4) == 0.25
    assert one_answer(shares, {}, None) == one_answer(shares, {}, 3) == 0.0
    assert one_answer({"base": {0: 25.0, 1: 50.0}}, {}, 4) == 25.0
    graded = {"base": {0: {"a": 1.0, "b": 0.5, "c": 1 / 3}}}
    assert one_answer(shares, graded) == pytest.approx(1 / 18)
    assert one_answer(shares, {"base": {0: {"a": 1.0, "b": 1.0 + 1e-9}}}) == 0.0
    free = {"base": {0: dict(zip("abcdefgh", draws(0).normal(size=8), strict=True))}}
    assert one_answer(shares, free) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99])
@pytest.mark.parametrize(("seeds", "arms"), [(2, 1), (2, 3), (3, 8), (5, 1)])
def test_shares_of_equal_arms_are_told_apart_once_in_twenty_at_most(rate: float, seeds: int, arms: int) -> None:
    generator, repeats, clips, found = draws(seeds * 100 + arms), 300, 128, 0
    names = ["base", *(f"a{i}" for i in range(arms))]
    for drawn in generator.binomial(clips, rate, size=(repeats, len(names), seeds)) / clips:
        values = {name: dict(enumerate(row)) for name, row in zip(names, drawn.tolist(), strict=True)}
        found += any(v.outcome in ("better", "worse") for v in judge(values, "base", "max", clips=clips))
    assert stats.binomtest(found, repeats).proportion_ci(0.999).low <= 0.05


def test_a_great_difference_of_shares_is_found_as_often_as_by_the_plain_test() -> None:
    generator, repeats, clips = draws(7), 300, 128
    base, arm = (generator.binomial(clips, rate, size=(repeats, 3)) / clips for rate in (0.61, 0.96))
    plain = stats.ttest_rel(arm, base, axis=1).pvalue <= 0.05
    found = [
        judge({"base": dict(enumerate(b)), "arm": dict(enumerate(a))}, "base", "max", clips=clips)[1].outcome
        for a, b in zip(arm.tolist(), base.tolist(), strict=True)
    ]
    assert found.count("better") >= plain.sum() > 0.95 * repeats


def test_shown_means_and_differences_are_over_the_same_seeds() -> None:
    values = {"base": {0: 1.0, 1: 2.0, 2: 9.0}, "arm": {0: 1.5, 1: 2.6, 3: 100.0}}
    base, arm = judge(values, "base", "min")
    assert base.mean == pytest.approx(4.0)
    assert (arm.mean, arm.baseline_mean, arm.seeds) == (pytest.approx(2.05), pytest.approx(1.5), 2)
    assert arm.difference == pytest.approx(arm.mean - arm.baseline_mean)
    assert "no result for seed 2" in arm.note
    assert "the baseline has 1.5" in arm.note
    assert "seed 3 is left out" in arm.note


def test_one_seed_whose_clips_all_differ_by_the_same_has_no_interval() -> None:
    clips = {"base": {0: {"a": 0.0, "b": 0.0}}, "arm": {0: {"a": 1.0, "b": 1.0}}}
    (_, verdict) = judge({"base": {0: 0.0}, "arm": {0: 1.0}}, "base", "max", clips)
    assert (verdict.interval, verdict.outcome) == (None, "inconclusive")
    assert "there is no interval" in verdict.note


def test_without_a_baseline_there_is_no_verdict() -> None:
    with pytest.raises(SoraError, match="no finished trial"):
        judge({"base": {}, "arm": {0: 1.0}}, "base", "min")
