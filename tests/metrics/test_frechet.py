"""The Fréchet distance against closed forms, and its extrapolation to endless clips against the truth."""

import math

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.metrics.frechet import (
    Moments,
    frechet_distance,
    frechet_distance_of_few,
    frechet_infinity,
    gaussian_distance,
    group_of,
    jackknife,
    merged,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(d: int, seed: int = 0) -> torch.Tensor:
    return torch.linalg.qr(normal(d, d, seed=seed))[0]


def grouped(x: torch.Tensor, groups: int = 16) -> list[Moments]:
    return [Moments.of(part) for part in x.chunk(groups)]


def test_commuting_covariances_have_a_closed_form() -> None:
    q = orthogonal(50)
    a, b = normal(50, seed=1).square() + 0.01, normal(50, seed=2).square()
    shift = normal(50, seed=3)
    got = gaussian_distance(shift, q * a @ q.T, torch.zeros(50, dtype=torch.float64), q * b @ q.T)
    expected = shift.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert abs(got - expected) <= 1.1e-12 * max(1.0, float(expected))


def test_singular_covariances_are_allowed() -> None:
    q = orthogonal(12)
    a, b = normal(12, seed=1).square(), normal(12, seed=2).square()
    a[:5], b[3:8] = 0, 0
    zero = torch.zeros(12, dtype=torch.float64)
    got = gaussian_distance(zero, q * a @ q.T, zero, q * b @ q.T)
    assert got == pytest.approx(float((a.sqrt() - b.sqrt()).square().sum()), abs=1e-6)  # roots of rounding errors


def test_covariances_that_do_not_commute_have_a_closed_form() -> None:
    # S_2 = T S_1 T is the optimal transport's image, so the distance is |d|^2 + tr (I - T) S_1 (I - T).
    a, t = normal(40, 40, seed=4), normal(40, 40, seed=5)
    first, t = a @ a.T / 40, t @ t.T / 40 + 0.1 * torch.eye(40, dtype=torch.float64)
    eye = torch.eye(40, dtype=torch.float64)
    shift = normal(40, seed=6)
    got = gaussian_distance(shift, first, torch.zeros(40, dtype=torch.float64), t @ first @ t)
    expected = shift.square().sum() + ((eye - t) @ first @ (eye - t)).trace()
    assert abs(got - expected) / expected <= 1e-12


def test_fewer_clips_than_features_give_the_same_by_features() -> None:
    x, y = normal(20, 64, seed=7), normal(31, 64, seed=8) * 1.3 + 0.2
    by_moments = frechet_distance(Moments.of(x), Moments.of(y))
    assert abs(frechet_distance_of_few(x, y) - by_moments) < 4e-6 * by_moments
    wide = normal(100, 8, seed=9)
    assert torch.isclose(
        frechet_distance_of_few(wide, wide[:50]), frechet_distance(Moments.of(wide), Moments.of(wide[:50])), rtol=1e-9
    )


def test_symmetry_and_invariances() -> None:
    x, y = normal(200, 16, seed=10), normal(300, 16, seed=11) @ normal(16, 16, seed=12) + 1
    base = frechet_distance(Moments.of(x), Moments.of(y))
    q, shift = orthogonal(16, seed=13), normal(16, seed=14) * 5
    assert torch.isclose(base, frechet_distance(Moments.of(y), Moments.of(x)), rtol=1e-11)
    moved = frechet_distance(Moments.of(x @ q + shift), Moments.of(y @ q + shift))
    assert torch.isclose(base, moved, rtol=1e-9)
    assert torch.isclose(9 * base, frechet_distance(Moments.of(3 * x), Moments.of(3 * y)), rtol=1e-11)
    assert frechet_distance(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-9)


def test_point_masses_are_their_squared_distance_apart() -> None:
    x, y = torch.zeros(5, 3, dtype=torch.float64), torch.tensor([[1.0, 2.0, 2.0]]).double().repeat(4, 1)
    assert frechet_distance(Moments.of(x), Moments.of(y)) == pytest.approx(9.0, abs=1e-12)


def test_any_partition_and_order_give_the_same_moments() -> None:
    x = normal(101, 12, seed=15) * 3 + 50  # a far mean loses float32's digits
    whole = Moments.of(x)
    shuffled = x[torch.randperm(101, generator=torch.Generator().manual_seed(1))]
    parts = merged([Moments.of(part) for part in (shuffled[:7], shuffled[7:60], shuffled[60:])])
    assert torch.allclose(whole.covariance, parts.covariance, atol=1e-10)
    assert torch.allclose(whole.covariance, torch.cov(x.T), atol=1e-10)


def test_extrapolation_removes_the_bias() -> None:
    shift, raw, infinite = 1.0, [], []
    for trial in range(20):
        x, y = normal(480, 24, seed=trial), normal(480, 24, seed=500 + trial)
        y[:, 0] += shift
        raw.append(float(frechet_distance(Moments.of(x), Moments.of(y))))
        infinite.append(frechet_infinity(grouped(x), grouped(y)))
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    assert mean(raw) > 1.5  # bias: more than half of the truth
    assert mean(infinite) == pytest.approx(1.0, abs=0.1)


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    x = normal(40, seed=16)
    without = [float(torch.cat([x[:i], x[i + 1 :]]).mean()) for i in range(40)]
    estimate = jackknife(float(x.mean()), [([1] * 40, without)])
    assert estimate.stderr == pytest.approx(float(x.std() / math.sqrt(40)), rel=1e-9)
    assert estimate.unbiased == pytest.approx(float(x.mean()), rel=1e-9)


def test_groups_do_not_depend_on_order() -> None:
    names = [f"clip-{i}" for i in range(1000)]
    groups = group_of(names, 16)
    assert torch.equal(groups.flip(0), group_of(names[::-1], 16))
    assert groups.bincount().min() > 30


def test_what_cannot_be_measured_is_refused() -> None:
    x = normal(10, 4)
    broken = x.clone()
    broken[3, 1] = math.nan
    with pytest.raises(SoraError, match=r"clips \[3\] are not finite"):
        Moments.of(broken)
    with pytest.raises(SoraError, match="widths 4 and 3"):
        frechet_distance(Moments.of(x), Moments.of(x[:, :3]))
    with pytest.raises(SoraError, match="at least 2 clips"):
        frechet_distance(Moments.of(x[:1]), Moments.of(x))
    wrong = Moments(10, torch.zeros(4).double(), -torch.eye(4).double() * 9)  # no features have such moments
    with pytest.raises(SoraError, match="below zero"):
        frechet_distance(wrong, wrong)
    with pytest.raises(SoraError, match="at least 4 groups"):
        frechet_infinity(grouped(x, 2), grouped(x, 2))
