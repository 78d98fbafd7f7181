"""Paths, timesteps and samplers against closed forms."""

import itertools

import pytest
import torch
from torch.distributions import Normal

from lightning_sora.diffusion.guidance import classifier_free
from lightning_sora.diffusion.paths import OBJECTIVES, interpolate
from lightning_sora.diffusion.samplers import SAMPLERS, time_schedule
from lightning_sora.diffusion.timesteps import TIMESTEPS, shift_time, stratified
from lightning_sora.errors import SoraError


@pytest.mark.parametrize("name", OBJECTIVES.list())
def test_a_perfect_prediction_gives_back_the_data(name: str) -> None:
    x_0, noise = torch.randn(2, 3, 5, 4).double()
    last = 0.99 if name == "eps" else 1.0  # pure noise says nothing of the data
    t = torch.tensor([0.2, 0.7, last]).double()[:, None, None]
    objective = OBJECTIVES.create(name)
    x_t = interpolate(x_0, noise, t)
    torch.testing.assert_close(objective.x_0(objective.target(x_0, noise, t), x_t, t), x_0)


def test_velocity_is_the_derivative_of_the_path() -> None:
    x_0, noise = torch.randn(2, 1, 5, 4).double()
    t = torch.full((1, 1, 1), 0.3).double()
    slope = (interpolate(x_0, noise, t + 1e-6) - interpolate(x_0, noise, t - 1e-6)) / 2e-6
    torch.testing.assert_close(
        OBJECTIVES.create("velocity").target(x_0, noise, torch.zeros(1, 1, 1)), slope, atol=1e-8, rtol=0
    )


def test_logit_normal_quantiles_match_the_normal_distribution() -> None:
    sampler = TIMESTEPS.create("logit_normal(mean=-0.8, std=1.5)")
    u = stratified(101)
    expected = torch.sigmoid(Normal(-0.8, 1.5).icdf(u.double())).float()
    torch.testing.assert_close(sampler(u, [1] * 101), expected, atol=1e-6, rtol=0)


def test_stratified_uniform_times_have_the_moments_of_the_uniform() -> None:
    t = TIMESTEPS.create("uniform")(stratified(1000), [1] * 1000)
    assert t.mean().item() == pytest.approx(0.5, abs=1e-6)
    assert t.var().item() == pytest.approx(1 / 12, rel=5e-3)


def test_larger_clips_train_at_the_noise_that_hides_as_much() -> None:
    """SD3: with s = sqrt(n/m), the ratio sigma/alpha at the shifted time is s times the old one."""
    sampler = TIMESTEPS.create("uniform(base_tokens=64)")
    t = torch.tensor([0.3, 0.3, 0.3])
    shifted = sampler(t, [64, 256, 16])
    ratio = (shifted / (1 - shifted)) / (0.3 / 0.7)
    torch.testing.assert_close(ratio, torch.tensor([1.0, 2.0, 0.5]))
    assert shift_time(torch.tensor([0.0, 1.0]), 3.0).tolist() == [0.0, 1.0]


def gaussian_denoiser(mean: float, std: float):
    """E[x_0 | x_t] of data N(mean, std^2) on the straight path."""

    def denoise(x: torch.Tensor, t: float) -> torch.Tensor:
        variance = (1 - t) ** 2 * std**2 + t**2
        return mean + (1 - t) * std**2 / variance * (x - (1 - t) * mean)

    return denoise


@pytest.mark.parametrize("name", ["euler", "heun", "ddim", "dpmpp_2m"])
def test_samplers_are_exact_on_straight_paths(name: str) -> None:
    """Point data: every path is a line, so even one step lands on it."""
    data = torch.randn(1, 6, 3).double()
    noise = torch.randn(1, 6, 3).double()
    for steps in (1, 3):
        out = SAMPLERS.create(name)(lambda x, t: data, noise, time_schedule(steps))
        torch.testing.assert_close(out, data)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2)])
def test_samplers_converge_at_their_order_on_a_gaussian(name: str, order: int) -> None:
    """The exact flow of N(0,1) to N(m, s^2) is x -> m + s x."""
    mean, std = 0.4, 0.5
    noise = torch.linspace(-2, 2, 41).double().reshape(1, 41, 1)
    exact = mean + std * noise
    errors = [
        (SAMPLERS.create(name)(gaussian_denoiser(mean, std), noise, time_schedule(n)) - exact).abs().max()
        for n in (32, 64, 128)
    ]
    measured = [torch.log2(a / b).item() for a, b in itertools.pairwise(errors)]
    assert measured[-1] == pytest.approx(order, abs=0.2)


def test_guidance_one_is_conditional_and_zero_unconditional() -> None:
    a, b = torch.randn(2, 1, 4, 3)
    torch.testing.assert_close(classifier_free(a, b, 1.0), a)
    torch.testing.assert_close(classifier_free(a, b, 0.0), b)
    torch.testing.assert_close(classifier_free(a, b, 3.0) - a, 2 * (a - b))


@pytest.mark.parametrize("arguments", [(0, 1.0), (4, 0.0), (4, -1.0)])
def test_impossible_schedules_are_refused(arguments: tuple[int, float]) -> None:
    with pytest.raises(SoraError, match="must be"):
        time_schedule(*arguments)


def test_schedule_runs_from_noise_to_data() -> None:
    times = time_schedule(4, shift=2.0)
    assert times[0] == 1.0
    assert times[-1] == 0.0
    assert times == sorted(times, reverse=True)
