"""The Fréchet distance in the evaluator's space: zero where nothing differs, and larger the worse clips get."""

import itertools
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lightning_sora.metrics.distances import FrechetVideoDistance
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.world import Facts, World

COUNT, SIDE = 64, 32
WORLD = World("tiny", seed=31, split="heldout")


def render(facts: Facts) -> torch.Tensor:
    return WORLD.render(facts, 17, SIDE, SIDE, 8.0)


@pytest.fixture(scope="module")
def facts() -> list[Facts]:
    return [WORLD.facts(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def videos(facts: list[Facts]) -> list[torch.Tensor]:
    return [render(f) for f in facts]


@pytest.fixture(scope="module")
def extractor() -> torch.nn.Module:
    return EXTRACTORS.create("world")


@pytest.fixture(scope="module")
def real(extractor: torch.nn.Module, videos: list[torch.Tensor]) -> torch.Tensor:
    """Features of the clips as they are."""
    return extractor(videos)


def noisy(video: torch.Tensor, index: int, sigma: float) -> torch.Tensor:
    noise = torch.randn(video.shape, generator=torch.Generator().manual_seed(index))
    return (video + sigma * noise).round().clamp(0, 255).to(torch.uint8)


def blurred(video: torch.Tensor, index: int, factor: float) -> torch.Tensor:
    frames = video.permute(0, 3, 1, 2).float()
    small = F.interpolate(frames, size=(round(SIDE / factor),) * 2, mode="bilinear", antialias=True)
    large = F.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
    return large.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def shuffled(video: torch.Tensor, index: int, share: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(index)
    chosen = torch.randperm(17, generator=generator)[: round(17 * share)].sort().values
    order = torch.arange(17)
    order[chosen] = chosen[torch.randperm(len(chosen), generator=generator)]
    return video[order]


def frozen(video: torch.Tensor, index: int, share: float) -> torch.Tensor:
    return video[torch.arange(17).clamp(max=16 - round(16 * share))]


CORRUPTIONS: dict[str, tuple[Callable, tuple[float, ...]]] = {
    "noise": (noisy, (4, 16, 64)),
    "blur": (blurred, (1.6, 3, 8)),
    "shuffled frames": (shuffled, (0.3, 0.6, 1)),
    "frozen frames": (frozen, (0.25, 0.5, 0.75, 1)),
}


def distance(extractor: torch.nn.Module, real: torch.Tensor, generated: torch.Tensor) -> dict[str, float]:
    """Between the features of two sets of clips."""
    metric = FrechetVideoDistance(extractor)
    metric.add(real, [f"r{i}" for i in range(len(real))], real=True)
    metric.add(generated, [f"g{i}" for i in range(len(generated))], real=False)
    return {name: float(value) for name, value in metric.compute().items()}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_it_rises_with_corruption(
    name: str, videos: list[torch.Tensor], real: torch.Tensor, extractor: torch.nn.Module
) -> None:
    corrupt, levels = CORRUPTIONS[name]
    made = [[corrupt(v, i, level) for i, v in enumerate(videos)] for level in levels]
    found = [0.0, *(distance(extractor, real, extractor(clips))["value"] for clips in made)]
    assert all(less < more for less, more in itertools.pairwise(found)), found
    assert found[-1] > 3 * found[1]


@pytest.mark.parametrize("name", ["dropped objects", "wrong colours"])
def test_it_rises_with_the_share_of_wrong_clips(
    name: str, facts: list[Facts], real: torch.Tensor, extractor: torch.nn.Module
) -> None:
    def wrong(f: Facts) -> Facts:
        (thing,) = f.objects
        if name == "wrong colours":
            return replace(f, objects=(replace(thing, color="pink"),))  # this world has no pink
        return replace(f, objects=(replace(thing, center=(0.0, -60.0), motion="still"),))  # behind the camera

    other = extractor([render(wrong(f)) for f in facts])
    found = []
    for share in (0.0, 0.1, 0.25, 0.5, 1.0):
        count = round(share * COUNT)
        found.append(distance(extractor, real, torch.cat([other[:count], real[count:]]))["value"])
    assert all(less < more for less, more in itertools.pairwise(found)), found


def test_halves_of_the_world_are_no_distance_apart(extractor: torch.nn.Module) -> None:
    clips = extractor([render(WORLD.facts(1000 + i)) for i in range(2 * 128)])
    found = distance(extractor, clips[:128], clips[128:])
    assert found["low"] <= 0 <= found["high"]
    assert abs(found["unbiased"]) < found["value"]
    assert found["value"] == pytest.approx(found["bias"], rel=0.5)
