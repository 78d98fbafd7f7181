"""What every sampler must do, over the registry; and that its laws catch what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sora.contracts import ContractViolation
from lightning_sora.diffusion.contract import CONTRACT
from lightning_sora.diffusion.samplers import SAMPLERS, sample_euler, sample_heun
from tests.unit.test_samplers import OF_DIFFUSERS


@pytest.mark.parametrize("law", CONTRACT.laws)
@pytest.mark.parametrize("spec", [name for name in SAMPLERS.list() if name not in OF_DIFFUSERS])
def test_contract(spec: str, law: str) -> None:
    CONTRACT.laws[law](spec)


def overshoots(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    return sample_euler(denoise, noise, times, progress) * 1.01


def stands_still(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    """Of one large step, whatever is asked."""
    for _ in progress(times[:-1]):
        x = denoise(noise, times[0])
    return noise + (times[-1] - times[0]) / times[0] * (noise - x)


def asks_between(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    return sample_euler(lambda x, t: denoise(x, t * 0.999), noise, times, progress)


def asks_at_zero(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    x = sample_euler(denoise, noise, times, progress)
    denoise(x, times[-1])
    return x


def skips_a_step(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    return sample_euler(denoise, noise, [times[0], *times[2:]], lambda steps: progress([*steps, steps[-1]][:-1]))


def asks_for_more(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    x = sample_euler(denoise, noise, times, progress)
    return denoise(x, times[-2]) if x.abs().max() > 0.1 else x


def hides_its_steps(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    return sample_heun(denoise, noise, times)


def mixes_clips(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    return sample_euler(lambda x, t: denoise(x, t) + 1e-3 * x.mean(0), noise, times, progress)


def draws(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    return sample_euler(denoise, noise + 0 * torch.rand(1), times, progress)


class Remembers:
    def __init__(self) -> None:
        self.last = 0.0

    def __call__(self, denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
        x = sample_euler(denoise, noise, times, progress)
        before, self.last = self.last, float(x.mean())
        return x + before


def works_in_place(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    noise += 0.1
    return sample_euler(denoise, noise, times, progress)


def in_double(denoise: Any, noise: Tensor, times: list[float], progress: Any = iter) -> Tensor:
    return sample_euler(denoise, noise.double(), times, progress)


MUTANTS = {
    overshoots: "lands_on_a_point",
    stands_still: "converges_to_the_exact_flow",
    asks_between: "asks_within_its_times",
    asks_at_zero: "asks_within_its_times",
    skips_a_step: "asks_within_its_times",
    asks_for_more: "asks_within_its_times",
    hides_its_steps: "tells_its_progress",
    mixes_clips: "clips_do_not_mix",
    draws: "repeats_itself",
    Remembers: "repeats_itself",
    works_in_place: "keeps_shape_and_dtype_and_its_hands_off_the_noise",
    in_double: "keeps_shape_and_dtype_and_its_hands_off_the_noise",
}


@pytest.fixture
def scratch() -> Iterator[None]:
    with SAMPLERS.temporary():
        yield


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.__name__)
def test_the_laws_catch_a_sampler_that_breaks_them(mutant: Any, scratch: None) -> None:
    SAMPLERS.register("mutant")(mutant)
    with pytest.raises(ContractViolation):
        CONTRACT.laws[MUTANTS[mutant]]("mutant")


def test_every_law_has_its_mutant() -> None:
    assert set(MUTANTS.values()) == set(CONTRACT.laws)
