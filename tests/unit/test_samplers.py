"""Samplers against closed forms and against diffusers."""

import math

import pytest
import torch
from torch import Tensor

from lightning_sora.diffusion.contract import CONTRACT
from lightning_sora.diffusion.samplers import DIFFUSERS, SAMPLERS, time_schedule
from lightning_sora.errors import SoraError

#: The registered ones that stand on diffusers, whose import takes seconds; their contract is tested here for that.
OF_DIFFUSERS = {
    "diffusers": [f"diffusers(scheduler={name!r})" for name in DIFFUSERS],
    "unipc": ["unipc", "unipc(order=3)"],
}
OWN = ("euler", "heun", "ddim", "dpmpp_2m")
MEAN, STD = 0.7, 0.4
NOISE = torch.linspace(-2, 2, 9, dtype=torch.float64)[None, :, None]


def gaussian(x_t: Tensor, t: float) -> Tensor:
    """E[x_0 | x_t] for normal data on the straight path, in closed form."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return MEAN + (1 - t) * STD**2 / variance * (x_t - (1 - t) * MEAN)


def error(name: str, steps: int) -> float:
    """From the exact flow, which carries noise z to mean + std z."""
    found = SAMPLERS.create(name)(gaussian, NOISE, time_schedule(steps))
    return float((found - (MEAN + STD * NOISE)).abs().max())


@pytest.mark.parametrize("name", [*OWN, "unipc"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_a_single_clip_is_reached_exactly(name: str, steps: int) -> None:
    """All paths to one point are straight."""
    point = torch.full_like(NOISE, 0.3)
    found = SAMPLERS.create(name)(lambda x, t: point, NOISE, time_schedule(steps, shift=3.0))
    torch.testing.assert_close(found, point, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("ddim", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_errors_fall_by_the_order_of_the_method(name: str, order: int) -> None:
    """From t = 0.9 to 0.1: at the ends dpmpp_2m's own variable, log alpha / sigma, is infinite."""

    def error_inside(steps: int) -> float:
        at = {t: (1 - t) * MEAN + math.sqrt((1 - t) ** 2 * STD**2 + t**2) * NOISE for t in (0.9, 0.1)}
        times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64).tolist()
        return float((SAMPLERS.create(name)(gaussian, at[0.9], times) - at[0.1]).abs().max())

    slope = math.log2(error_inside(64) / error_inside(256)) / 2
    assert slope == pytest.approx(order, abs=0.1)


def test_ddim_is_euler_on_the_straight_path() -> None:
    times = time_schedule(9, shift=2.0)
    euler, ddim = (SAMPLERS.create(name)(gaussian, NOISE, times) for name in ("euler", "ddim"))
    torch.testing.assert_close(ddim, euler, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [("euler", "FlowMatchEulerDiscreteScheduler"), ("dpmpp_2m", "DPMSolverMultistepScheduler")],
)
@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_it_agrees_with_diffusers(ours: str, theirs: str, shift: float) -> None:
    times = time_schedule(20, shift)
    own = SAMPLERS.create(ours)(gaussian, NOISE, times)
    other = SAMPLERS.create(f"diffusers(scheduler='{theirs}')")(gaussian, NOISE, times)
    torch.testing.assert_close(own, other, atol=2e-4, rtol=0)


def test_ddim_agrees_with_diffusers_on_the_variance_preserving_path() -> None:
    from diffusers.schedulers import DDIMScheduler

    solver = DDIMScheduler(
        clip_sample=False, set_alpha_to_one=True, prediction_type="epsilon", timestep_spacing="trailing"
    )
    solver.set_timesteps(10)
    alpha = solver.alphas_cumprod.double().sqrt()
    sigma = (1 - solver.alphas_cumprod.double()).sqrt()
    levels = [(sigma[s] / (alpha[s] + sigma[s])).item() for s in solver.timesteps]  # t of equal sigma / alpha
    first = solver.timesteps[0]
    x = NOISE * (alpha[first] + sigma[first])
    for step in solver.timesteps:
        scale = alpha[step] + sigma[step]
        t = (sigma[step] / scale).item()
        x_0 = gaussian(x / scale, t)
        x = solver.step((x - alpha[step] * x_0) / sigma[step], step, x).prev_sample
    ours = SAMPLERS.create("ddim")(gaussian, NOISE, [*levels, 0.0])
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("spec", [spec for specs in OF_DIFFUSERS.values() for spec in specs])
def test_those_of_diffusers_keep_the_contract(spec: str, law: str) -> None:
    CONTRACT.laws[law](spec)


@pytest.mark.parametrize("name", DIFFUSERS)
def test_adapted_schedulers_converge(name: str) -> None:
    assert error(f"diffusers(scheduler='{name}')", 128) < 0.02


def test_denoising_calls_are_as_many_as_documented() -> None:
    for name, calls in {"euler": 8, "ddim": 8, "dpmpp_2m": 8, "unipc": 8, "heun": 15}.items():
        seen = []

        def counting(x: Tensor, t: float, seen: list[float] = seen) -> Tensor:
            seen.append(t)
            return gaussian(x, t)

        SAMPLERS.create(name)(counting, NOISE, time_schedule(8))
        assert len(seen) == calls, name


def test_a_scheduler_that_cannot_be_driven_is_refused_with_those_that_can() -> None:
    with pytest.raises(SoraError, match="UniPCMultistepScheduler"):
        SAMPLERS.create("diffusers(scheduler='PNDMScheduler')")
