"""Samplers: from noise at ``t = 1`` to data at ``t = 0``.

A sampler is a function ``(denoise, noise, times) -> x_0``. ``denoise(x_t, t)`` gives the expected
``x_0``; the straight path's velocity is then ``(x_t - x_0) / t``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.diffusion.timesteps import shift_time
from lightning_sora.errors import SoraError
from lightning_sora.registry import Registry

Rows = Float[Tensor, "batch tokens dim"]
Denoise = Callable[[Rows, float], Rows]
Progress = Callable[[Any], Any]
Sampler = Callable[..., Rows]

SAMPLERS: Registry[Sampler] = Registry("sampler")


def time_schedule(steps: int, shift: float = 1.0) -> list[float]:
    """``steps + 1`` times from 1 to 0, evenly spaced, then shifted (Esser et al. 2024, Eq. 23).

    Raises:
        SoraError: fewer than one step, or a shift that is not positive.
    """
    if steps < 1:
        raise SoraError(f"steps={steps} must be at least 1")
    if shift <= 0:
        raise SoraError(f"shift={shift} must be positive; 1 is none")
    return shift_time(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift).tolist()


def _pairs(times: list[float], progress: Progress) -> Iterator[tuple[float, float]]:
    yield from progress(list(itertools.pairwise(times)))


def sample_euler(denoise: Denoise, noise: Rows, times: list[float], progress: Progress = iter) -> Rows:
    """Euler's method on the probability-flow ODE; one denoising a step.

    Args:
        times: descending, from 1 (noise) to 0 (data).
        progress: wraps the list of steps, for a progress bar.
    """
    x = noise
    for t, t_next in _pairs(times, progress):
        velocity = (x - denoise(x, t)) / t
        x = x + (t_next - t) * velocity
    return x


def sample_heun(denoise: Denoise, noise: Rows, times: list[float], progress: Progress = iter) -> Rows:
    """Heun's second-order method (Karras et al. 2022, arXiv:2206.00364, Alg. 1, no churn); two denoisings a step."""
    x = noise
    for t, t_next in _pairs(times, progress):
        velocity = (x - denoise(x, t)) / t
        euler = x + (t_next - t) * velocity
        if t_next > 0:
            velocity = (velocity + (euler - denoise(euler, t_next)) / t_next) / 2
            euler = x + (t_next - t) * velocity
        x = euler
    return x


@SAMPLERS.register("euler")
def euler() -> Sampler:
    """First order, one denoising a step."""
    return sample_euler


@SAMPLERS.register("heun")
def heun() -> Sampler:
    """Second order, two denoisings a step."""
    return sample_heun
