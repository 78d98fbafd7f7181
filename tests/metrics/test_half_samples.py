"""The Fréchet distance without bias, its interval and its floor, against simulation with few clips for their width."""

import logging
import math
import re

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.metrics.distances import FrechetVideoDistance
from lightning_sora.metrics.extractors.base import Extractor
from lightning_sora.metrics.frechet import Moments, frechet_distance
from lightning_sora.metrics.half_samples import balanced_halves, frechet_estimate, frechet_floor


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum(power: float, width: int) -> torch.Tensor:
    return torch.arange(1, width + 1, dtype=torch.float64) ** -power


def grouped(x: torch.Tensor, seed: int = 0) -> list[Moments]:
    """In 16 groups of random sizes, as hashes deal clips."""
    group = torch.randint(0, 16, (len(x),), generator=torch.Generator().manual_seed(seed))
    return [Moments.of(x[group == i]) for i in range(16)]


def least(trials: int) -> float:
    """Coverage that a 95 % interval falls below once in 700 tests."""
    return 0.95 - 3 * math.sqrt(0.95 * 0.05 / trials)


@pytest.mark.parametrize(("power", "clips"), [(1.0, 32), (1.0, 64), (1.0, 256), (2.0, 128), (0.0, 48), (0.0, 256)])
def test_the_floor_is_what_two_sets_of_one_law_are_apart(power: float, clips: int) -> None:
    width, trials = 48, 12
    scale = spectrum(power, width).sqrt()
    sets = [normal(clips, width, seed=40 * clips + i) * scale for i in range(2 * trials)]
    apart = [float(frechet_distance(*(Moments.of(x) for x in sets[i : i + 2]))) for i in range(0, 2 * trials, 2)]
    said = [frechet_floor(grouped(x, seed=i), clips, clips) for i, x in enumerate(sets[:trials])]
    error = math.hypot(*(float(torch.tensor(v).std()) / math.sqrt(trials) for v in (apart, said)))
    assert sum(said) / trials == pytest.approx(sum(apart) / trials, abs=0.1 * sum(apart) / trials + 2 * error)


@pytest.mark.parametrize(("clips", "others"), [(400, 400), (400, 1600), (800, 200)])
def test_the_floor_of_many_clips_has_a_closed_form(clips: int, others: int) -> None:
    """To first order in 1/n: ``(1/n + 1/m) tr S + (1/n + 1/m) / 2 sum_ij l_i l_j (1 + d_ij) / (l_i + l_j)``."""
    values = torch.linspace(0.5, 3.0, 8, dtype=torch.float64).square()
    pairs = values[:, None] * values / (values[:, None] + values)
    expected = (1 / clips + 1 / others) * (values.sum() + (pairs.sum() + pairs.diagonal().sum()) / 2)
    said = [frechet_floor(grouped(normal(800, 8, seed=i) * values.sqrt()), clips, others) for i in range(8)]
    assert sum(said) / 8 == pytest.approx(float(expected), rel=0.1)


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("law", ["equal", "shifted", "scaled", "noisy"])
def test_the_interval_of_fewer_clips_than_features_covers_the_truth(law: str, paired: bool) -> None:
    width, clips, trials = 48, 40, 16
    values = spectrum(1.0, width)
    noise = values.sum() / width if law == "noisy" else 0.0
    gain, shift = (1.5 if law == "scaled" else 1.0), (1.0 if law == "shifted" else 0.0)
    truth = shift**2 + float((gain * (values + noise).sqrt() - values.sqrt()).square().sum())
    covered, unbiased, plain = 0, [], []
    for trial in range(trials):
        x = normal(clips, width, seed=3000 + trial)
        y = normal(clips, width, seed=7000 + trial)
        y = gain * (0.8 * x + 0.6 * y if paired else y) * (values + noise).sqrt()
        y[:, 0] += shift
        found = frechet_estimate(
            grouped(x * values.sqrt(), trial), grouped(y, trial if paired else 900 + trial), paired=paired
        )
        covered += found.low <= truth <= found.high
        unbiased.append(found.unbiased)
        plain.append(found.value)
    assert covered / trials > least(trials)
    error = float(torch.tensor(unbiased).std()) / math.sqrt(trials)
    assert sum(unbiased) / trials == pytest.approx(truth, abs=3 * error)
    if not paired:
        assert min(plain) > truth + 3 * error


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_interval_of_many_clips_covers_the_truth_and_is_not_wide(shift: float) -> None:
    covered, trials, errors, unbiased = 0, 30, [], []
    for trial in range(trials):
        x, y = normal(160, 6, seed=13000 + trial), normal(240, 6, seed=17000 + trial)
        y[:, 0] += shift
        found = frechet_estimate(grouped(x, trial), grouped(y, 500 + trial))
        covered += found.low <= shift**2 <= found.high
        errors.append(found.stderr)
        unbiased.append(found.unbiased)
    assert covered / trials > least(trials)
    spread = float(torch.tensor(unbiased).std())
    assert 0.8 * spread < math.sqrt(sum(e**2 for e in errors) / trials) < 2.5 * spread


def test_pairs_are_not_taken_for_independent() -> None:
    for trial in range(3):
        x = normal(160, 6, seed=11000 + trial)
        found = frechet_estimate(grouped(x, trial), grouped(x + 0.5, trial), paired=True)
        assert found.unbiased == pytest.approx(1.5, abs=1e-9)
        assert found.stderr == pytest.approx(0, abs=1e-9)
        assert frechet_estimate(grouped(x, trial), grouped(x + 0.5, trial)).unbiased < 1.45


def test_any_two_groups_are_as_often_together_as_apart() -> None:
    halves = balanced_halves([Moments.of(torch.zeros(1, 2))] * 16)
    assert all(len(first) == len(second) == 8 for first, second in halves)
    together = {sum((i in first) == (j in first) for first, _ in halves) for i in range(16) for j in range(i)}
    assert together == {7}
    with pytest.raises(SoraError, match="got 6"):
        balanced_halves([Moments.of(torch.zeros(1, 2))] * 6)


class Flat(Extractor):
    """Features are given; no clip is ever seen."""

    title, width = "flat", 48

    def prepare(self, clip: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def describe(self) -> dict:
        return {"name": "flat", "weights": "none", "verified": False}


def computed(clips: int, others: int) -> dict[str, torch.Tensor]:
    metric = FrechetVideoDistance(Flat())
    metric.add(normal(clips, 48, seed=1), [f"r{i}" for i in range(clips)], real=True)
    metric.add(normal(others, 48, seed=2), [f"g{i}" for i in range(others)], real=False)
    return metric.compute()


def test_what_few_clips_do_not_tell_is_left_out_and_how_many_would_is_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = computed(32, 32)
    assert set(found) == {"value", "small_sample_bias", "real", "generated"}
    assert found["small_sample_bias"] == pytest.approx(float(found["value"]), rel=0.15)
    (said,) = (record.getMessage() for record in caplog.records)
    assert "32 real and 32 generated clips" in said
    needed = int(re.search(r"about (\d+) clips a side", said)[1])
    assert "unbiased" not in computed(round(0.8 * needed), round(0.8 * needed))
    caplog.clear()
    assert {"unbiased", "stderr", "low", "high"} <= set(computed(round(1.25 * needed), round(1.25 * needed)))
    assert not caplog.records


def test_sides_of_different_sizes_need_more_clips(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert not {"unbiased", "low"} & set(computed(160, 80))
    assert "as many clips on both sides, or about" in caplog.text
    assert {"unbiased", "low"} <= set(computed(160, 160))


def test_sides_of_unlike_reliability_need_more_clips() -> None:
    """White noise in many dimensions, of which the covariance of few clips knows little, beside a steep spectrum."""
    values = spectrum(2.0, 300)
    for trial in range(3):
        x, y = (normal(40, 300, seed=21000 + 2 * trial + side) for side in (0, 1))
        x, y = x * values.sqrt(), y * (values + values.sum() / 600).sqrt()
        turned = torch.linalg.qr(torch.cat([x, y]).T, mode="r").R.T
        found = frechet_estimate(grouped(turned[:40], trial), grouped(turned[40:], 50 + trial))
        assert min(found.reliability) > 0.5
        assert not found.reliable
