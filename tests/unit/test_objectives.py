"""Objectives and weightings: identities that hold whatever is learned."""

import pytest
import torch

from lightning_sora.diffusion.paths import OBJECTIVES, interpolate, log_snr, variance_preserving
from lightning_sora.diffusion.weighting import WEIGHTINGS
from lightning_sora.errors import SoraError

EVERY = [*OBJECTIVES.list(), "edm(sigma_data=0.5)"]
T = torch.tensor([0.05, 0.3, 0.5, 0.8, 0.97], dtype=torch.float64)[:, None, None]


def rows(seed: int) -> torch.Tensor:
    return torch.randn(5, 7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("spec", EVERY)
def test_the_gain_is_the_ratio_of_squared_errors(spec: str) -> None:
    objective, x_0, noise = OBJECTIVES.create(spec), rows(0), rows(1)
    x_t = interpolate(x_0, noise, T)
    exact = objective.target(x_0, noise, T)
    off = exact + 0.1 * rows(2)
    implied = objective.x_0(off, x_t, T) - x_0
    ratio = (off - exact).square().mean(dim=(1, 2)) / implied.square().mean(dim=(1, 2))
    torch.testing.assert_close(objective.error_gain(T[:, 0, 0]), ratio, rtol=1e-6, atol=0)


@pytest.mark.parametrize("spec", EVERY)
@pytest.mark.parametrize("t", [0.0, 1e-4, 1.0])
def test_everything_is_finite_at_both_ends(spec: str, t: float) -> None:
    objective, x_0, noise = OBJECTIVES.create(spec), rows(0).float(), rows(1).float()
    level = torch.full((5, 1, 1), t)
    x_t = interpolate(x_0, noise, level)
    target = objective.target(x_0, noise, level)
    for value in (objective.input(x_t, level), target, objective.x_0(target, x_t, level), objective.error_gain(level)):
        assert value.isfinite().all()


@pytest.mark.parametrize("spec", EVERY)
def test_inputs_of_unit_data_have_about_unit_variance_or_are_the_straight_path(spec: str) -> None:
    x_0, noise = torch.randn(2, 5, 20_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    objective = OBJECTIVES.create("edm(sigma_data=1.0)" if spec.startswith("edm") else spec)
    x_t = interpolate(x_0, noise, T)
    found = objective.input(x_t, T)
    if spec in ("velocity", "x"):
        assert torch.equal(found, x_t)
    else:
        torch.testing.assert_close(found.var(dim=(1, 2)), torch.ones(5).double(), atol=0.05, rtol=0)


def test_edm_of_unit_data_is_v_with_the_opposite_sign() -> None:
    x_0, noise = rows(0), rows(1)
    v, edm = OBJECTIVES.create("v"), OBJECTIVES.create("edm")
    torch.testing.assert_close(edm.target(x_0, noise, T), -v.target(x_0, noise, T))
    torch.testing.assert_close(edm.input(x_0, T), v.input(x_0, T))


def test_edm_is_table_1_of_the_paper() -> None:
    data = 0.5
    x_0, noise, objective = rows(0), rows(1), OBJECTIVES.create(f"edm(sigma_data={data})")
    sigma = T / (1 - T)
    x = x_0 + sigma * noise
    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sigma * data / (sigma**2 + data**2).sqrt()
    c_in = 1 / (sigma**2 + data**2).sqrt()
    straight = interpolate(x_0, noise, T)
    torch.testing.assert_close(objective.input(straight, T), c_in * x)
    torch.testing.assert_close(objective.target(x_0, noise, T), (x_0 - c_skip * x) / c_out)
    guess = rows(3)
    torch.testing.assert_close(objective.x_0(guess, straight, T), c_skip * x + c_out * guess)


def test_the_variance_preserving_path_is_one_and_has_the_same_signal_to_noise() -> None:
    alpha, sigma = variance_preserving(T)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(T))
    torch.testing.assert_close((alpha**2 / sigma**2).log(), log_snr(T))
    torch.testing.assert_close(((1 - T) ** 2 / T**2).log(), log_snr(T))


def test_min_snr_is_as_published() -> None:
    """Hang et al. 2023: min(SNR, g) on x_0, min(SNR, g) / SNR on the noise, min(SNR, g) / (SNR + 1) on v."""
    t = T[:, 0, 0]
    snr, weighting = log_snr(t).exp(), WEIGHTINGS.create("min_snr(gamma=5.0)")
    capped = snr.clamp(max=5)
    published = {"x": capped, "eps": capped / snr, "v": capped / (snr + 1)}
    for name, expected in published.items():
        torch.testing.assert_close(weighting(t, OBJECTIVES.create(name)), expected)


@pytest.mark.parametrize("spec", ["min_snr", "sigmoid(bias=-1.0)"])
def test_a_weighting_means_the_same_for_every_objective(spec: str) -> None:
    t, weighting = T[:, 0, 0], WEIGHTINGS.create(spec)
    on_x_0 = [weighting(t, o) * o.error_gain(t) for o in map(OBJECTIVES.create, EVERY)]
    for other in on_x_0[1:]:
        torch.testing.assert_close(other, on_x_0[0])


def test_sigmoid_is_as_published_on_the_noise() -> None:
    t = T[:, 0, 0]
    expected = torch.sigmoid(-2.0 - log_snr(t))
    torch.testing.assert_close(WEIGHTINGS.create("sigmoid(bias=-2.0)")(t, OBJECTIVES.create("eps")), expected)


def test_uniform_leaves_the_objective_alone() -> None:
    assert (WEIGHTINGS.create("uniform")(T[:, 0, 0], OBJECTIVES.create("v")) == 1).all()


@pytest.mark.parametrize(
    ("registry", "spec"), [(OBJECTIVES, "edm(sigma_data=0.0)"), (WEIGHTINGS, "min_snr(gamma=-1.0)")]
)
def test_impossible_options_are_refused(registry: object, spec: str) -> None:
    with pytest.raises(SoraError, match="must be positive"):
        registry.create(spec)  # type: ignore[attr-defined]
