"""The contract of a sampler: from any noise to the data that a perfect denoiser knows, at the cost that it says."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.contracts import Contract, no_global_draws, require, require_close
from lightning_sora.diffusion.samplers import SAMPLERS, Denoise, Sampler, time_schedule
from lightning_sora.randomness import coarse_generator

Rows = Float[Tensor, "batch tokens dim"]
#: Those of diffusers compute their coefficients in float32.
TOLERANCE = 2e-5
MEAN, STD = 0.7, 0.4


def make(spec: str) -> Sampler:
    return SAMPLERS.create(spec)


CONTRACT = Contract(make)


def noise_of(clips: int = 2) -> Rows:
    return torch.randn(clips, 5, 3, dtype=torch.float64, generator=coarse_generator(1, "contract"))


def of_gaussian(x_t: Rows, t: float) -> Rows:
    """``E[x_0 | x_t]`` of normal data of mean ``MEAN`` and deviation ``STD`` on the straight path."""
    variance = (1 - t) ** 2 * STD**2 + t**2
    return MEAN + (1 - t) * STD**2 / variance * (x_t - (1 - t) * MEAN)


def on_flow(noise: Rows, t: float) -> Rows:
    """Where the exact flow of that data, which carries noise to ``MEAN + STD * noise``, is at ``t``."""
    return (1 - t) * MEAN + math.sqrt((1 - t) ** 2 * STD**2 + t**2) * noise


class _Watched:
    """A denoiser that keeps the times that it is asked at."""

    def __init__(self, denoise: Denoise) -> None:
        self.denoise = denoise
        self.times: list[float] = []

    def __call__(self, x_t: Rows, t: float) -> Rows:
        self.times.append(float(t))
        return self.denoise(x_t, t)


@CONTRACT.law
def lands_on_a_point(spec: str) -> None:
    """Where all data are one clip, every path to it is straight: any number of steps ends there, from any time on."""
    noise = noise_of()
    point = torch.linspace(-1, 1, noise.numel(), dtype=noise.dtype).reshape(noise.shape)
    for steps, shift in itertools.product((1, 2, 7), (1.0, 3.0)):
        found = make(spec)(lambda x, t: point, noise, time_schedule(steps, shift))
        require_close(found, point, f"{steps} steps, shift {shift:g}: it does not end at the point", TOLERANCE)
    times = [0.6 * t for t in time_schedule(4)]
    found = make(spec)(lambda x, t: point, 0.4 * point + 0.6 * noise, times)
    require_close(found, point, "from t = 0.6 on: it does not end at the point", TOLERANCE)


@CONTRACT.law
def converges_to_the_exact_flow(spec: str) -> None:
    """For normal data the flow is known: errors fall at least by half as steps double, or are gone."""
    noise = noise_of()
    errors = []
    for steps in (16, 32, 64):
        times = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64).tolist()
        errors.append(float((make(spec)(of_gaussian, on_flow(noise, 0.9), times) - on_flow(noise, 0.1)).abs().max()))
    for before, after in itertools.pairwise(errors):
        told = ", ".join(f"{error:.2g}" for error in errors)
        require(after < max(before / 1.8, TOLERANCE), f"errors of 16, 32 and 64 steps are {told}: below first order")
    whole = make(spec)(of_gaussian, noise, time_schedule(64))
    require_close(whole, on_flow(noise, 0.0), "64 steps from noise to data are far from the exact flow", 0.05)


@CONTRACT.law
def asks_within_its_times(spec: str) -> None:
    """The denoiser is asked at the first time and then on to t = 0, but not there, and as often whatever it answers."""
    times = time_schedule(6, shift=2.0)
    counts = []
    answers: tuple[Denoise, ...] = (of_gaussian, lambda x, t: torch.zeros_like(x))
    for denoise in answers:
        watched = _Watched(denoise)
        make(spec)(watched, noise_of(), times)
        counts.append(len(watched.times))
        require(watched.times, "it never asks the denoiser")
        require(watched.times[0] == times[0], f"it asks first at t = {watched.times[0]:.4g}, not at {times[0]:.4g}")
        strange = [t for t in watched.times if not 0 < t <= times[0]]
        require(not strange, f"it asks at t = {', '.join(f'{t:.4g}' for t in strange[:3])}, out of (0, {times[0]:.4g}]")
        asked = [any(end < t <= begin for t in watched.times) for begin, end in itertools.pairwise(times)]
        require(all(asked), f"it does not ask within step {asked.index(False) + 1 if not all(asked) else 0}")
    require(counts[0] == counts[1], f"it asks {counts[0]} or {counts[1]} times, depending on the answers")


@CONTRACT.law
def tells_its_progress(spec: str) -> None:
    """``progress`` wraps the steps: as many as there are, each gone through once."""
    passed: list[int] = []

    def progress(steps: list[tuple[float, float]]) -> Iterable[tuple[float, float]]:
        require(len(steps) == 6, f"progress is told of {len(steps)} steps of 6")
        for step in steps:
            passed.append(1)
            yield step

    found = make(spec)(of_gaussian, noise_of(), time_schedule(6), progress)
    require(len(passed) == 6, f"{len(passed)} of 6 steps pass by progress; loop over progress(list of steps)")
    require_close(found, make(spec)(of_gaussian, noise_of(), time_schedule(6)), "watching progress changes the result")


@CONTRACT.law
def clips_do_not_mix(spec: str) -> None:
    """A clip comes out the same whatever else is in its batch."""
    noise = noise_of(3)
    together = make(spec)(of_gaussian, noise, time_schedule(5))
    for i in range(len(noise)):
        alone = make(spec)(of_gaussian, noise[i : i + 1], time_schedule(5))
        require_close(together[i : i + 1], alone, f"clip {i} of a batch differs from itself alone", TOLERANCE)


@CONTRACT.law
def repeats_itself(spec: str) -> None:
    """The same noise gives the same clip, from one sampler again and again: nothing is drawn, nothing remembered."""
    sampler, noise = make(spec), noise_of()
    with no_global_draws("sampling"):
        first = sampler(of_gaussian, noise, time_schedule(5))
    sampler(lambda x, t: torch.ones_like(x), noise + 1, time_schedule(3))
    again = sampler(of_gaussian, noise, time_schedule(5))
    require(torch.equal(first, again), "a second sampling from the same noise differs from the first")


@CONTRACT.law
def keeps_shape_and_dtype_and_its_hands_off_the_noise(spec: str) -> None:
    """Rows come out as they went in, in float32 and float64, and the noise that was given is not changed."""
    predict: Callable[[Rows, float], Rows] = of_gaussian
    for dtype in (torch.float32, torch.float64):
        noise = noise_of().to(dtype)
        before = noise.clone()
        found = make(spec)(predict, noise, time_schedule(3))
        require(found.shape == noise.shape, f"{tuple(noise.shape)} went in, {tuple(found.shape)} came out")
        require(found.dtype == dtype, f"{dtype} went in, {found.dtype} came out")
        require(torch.equal(noise, before), "the noise is changed in place; work on a new tensor")
