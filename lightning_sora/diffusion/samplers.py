"""Samplers: from noise at ``t = 1`` to data at ``t = 0``.

A sampler is a function ``(denoise, noise, times) -> x_0``, registered as it is; what it takes by keyword alone are its
options. ``denoise(x_t, t)`` gives the expected ``x_0``; the straight path's velocity is then ``(x_t - x_0) / t``. Every
path is a rescaling of the straight one (see :mod:`.paths`), so the samplers work on that one whatever the objective.
:mod:`.contract` says what all of them must keep.
"""

from __future__ import annotations

import importlib
import itertools
import math
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

SAMPLERS: Registry[Sampler] = Registry(
    "sampler",
    name="sampler",
    given=("denoise", "noise", "times", "progress"),
    functions=True,
    contract="lightning_sora.diffusion.contract",
)


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


@SAMPLERS.register("euler")
def sample_euler(denoise: Denoise, noise: Rows, times: list[float], progress: Progress = iter) -> Rows:
    """Euler's method on the probability-flow ODE: first order, one denoising a step.

    Args:
        times: descending, from 1 (noise) to 0 (data).
        progress: wraps the list of steps, for a progress bar.
    """
    x = noise
    for t, t_next in _pairs(times, progress):
        velocity = (x - denoise(x, t)) / t
        x = x + (t_next - t) * velocity
    return x


@SAMPLERS.register("heun")
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


@SAMPLERS.register("ddim")
def sample_ddim(denoise: Denoise, noise: Rows, times: list[float], progress: Progress = iter) -> Rows:
    """DDIM without added noise (Song et al. 2021, arXiv:2010.02502, Eq. 12); first order, one denoising a step.

    ``alpha_s x_0 + sigma_s noise``, with the noise that ``x_t`` and ``x_0`` imply. The step does not depend on how a
    path is scaled, so this is DDIM of the variance-preserving path at equal signal-to-noise ratios; on the straight
    path it is Euler's method.
    """
    x = noise
    for t, t_next in _pairs(times, progress):
        x_0 = denoise(x, t)
        implied = (x - (1 - t) * x_0) / t
        x = (1 - t_next) * x_0 + t_next * implied
    return x


@SAMPLERS.register("dpmpp_2m")
def sample_dpmpp_2m(denoise: Denoise, noise: Rows, times: list[float], progress: Progress = iter) -> Rows:
    """DPM-Solver++ (2M) in ``lambda = log(alpha / sigma)`` (Lu et al. 2022, arXiv:2211.01095, Alg. 2); one denoising
    a step.

    First order where ``lambda`` is infinite: out of pure noise, in the step after it, and into the data.
    """
    x, before, h_before = noise, None, math.inf
    for t, t_next in _pairs(times, progress):
        x_0 = denoise(x, t)
        h = math.inf if t == 1 or t_next == 0 else math.log((1 - t_next) * t / (t_next * (1 - t)))
        guess = x_0
        if before is not None and math.isfinite(h) and math.isfinite(h_before):
            guess = x_0 + h / (2 * h_before) * (x_0 - before)
        # -alpha_s (exp(-h) - 1), with exp(-h) written out so that it is finite at both ends.
        x = t_next / t * x + ((1 - t_next) - (1 - t) * t_next / t) * guess
        before, h_before = x_0, h
    return x


#: Schedulers of diffusers that take any descending noise levels of the straight path.
DIFFUSERS = (
    "FlowMatchEulerDiscreteScheduler",
    "UniPCMultistepScheduler",
    "DPMSolverMultistepScheduler",
)


@SAMPLERS.register("diffusers")
class DiffusersSampler:
    """A scheduler of diffusers, by the name of its class, driven at the times that are asked for; needs
    ``lightning-sora[diffusers]``.

    Args:
        scheduler: such as ``"UniPCMultistepScheduler"``.

    Raises:
        SoraError: diffusers is not installed, or the scheduler is not one that can be driven so.
    """

    def __init__(self, scheduler: str) -> None:
        if scheduler not in DIFFUSERS:
            raise SoraError(
                f"scheduler={scheduler!r} cannot be driven at given times; those that can: {', '.join(DIFFUSERS)}"
            )
        try:
            importlib.import_module("diffusers.schedulers")
        except ModuleNotFoundError:
            raise SoraError("diffusers is not installed: pip install 'lightning-sora[diffusers]'") from None
        flow = scheduler.startswith("FlowMatch")
        self.options: dict[str, Any] = {} if flow else {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        self.scheduler = scheduler

    def __call__(self, denoise: Denoise, noise: Rows, times: list[float], progress: Progress = iter) -> Rows:
        solver = getattr(importlib.import_module("diffusers.schedulers"), self.scheduler)(**self.options)
        solver.set_timesteps(len(times) - 1)
        # Their logarithm of alpha / sigma must be finite at the start.
        solver.sigmas = torch.tensor([min(t, 1 - 1e-6) for t in times], dtype=torch.float32)
        solver.timesteps = solver.sigmas[:-1] * solver.config.num_train_timesteps
        x = noise
        for index, (t, _) in enumerate(_pairs(times, progress)):
            velocity = (x - denoise(x, t)) / t
            x = solver.step(velocity, solver.timesteps[index], x, return_dict=False)[0]
        return x


@SAMPLERS.register("unipc")
class UniPC(DiffusersSampler):
    """UniPC of diffusers (Zhao et al. 2023, arXiv:2302.04867); one denoising a step.

    Args:
        order: of the method, from 1.
    """

    def __init__(self, order: int = 2) -> None:
        super().__init__("UniPCMultistepScheduler")
        self.options["solver_order"] = order
