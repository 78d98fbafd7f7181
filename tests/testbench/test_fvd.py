"""The Fréchet distance in the evaluator's space: zero where nothing differs, and larger the worse clips get."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from lightning_sora.errors import SoraError
from lightning_sora.metrics.distances import FrechetVideoDistance
from lightning_sora.metrics.extractors import EXTRACTORS
from lightning_sora.testbench.evaluator.reading import frames_read
from lightning_sora.testbench.evaluator.vocabulary import MIN_FRAMES
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
    return extractor(videos, [8.0] * COUNT)


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
    found = [0.0, *(distance(extractor, real, extractor(clips, [8.0] * COUNT))["value"] for clips in made)]
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

    other = extractor([render(wrong(f)) for f in facts], [8.0] * COUNT)
    found = []
    for share in (0.0, 0.1, 0.25, 0.5, 1.0):
        count = round(share * COUNT)
        found.append(distance(extractor, real, torch.cat([other[:count], real[count:]]))["value"])
    assert all(less < more for less, more in itertools.pairwise(found)), found


def test_halves_of_the_world_are_no_distance_apart(extractor: torch.nn.Module) -> None:
    clips = extractor([render(WORLD.facts(1000 + i)) for i in range(2 * 128)], [8.0] * 256)
    found = distance(extractor, clips[:128], clips[128:])
    assert found["low"] <= 0 <= found["high"]
    assert abs(found["unbiased"]) < found["value"]
    assert found["value"] == pytest.approx(found["small_sample_bias"], rel=0.5)


@pytest.mark.parametrize("fps", [16.0, 24.0, 40.0])
def test_the_rate_of_the_clips_moves_no_feature(extractor: torch.nn.Module, facts: list[Facts], fps: float) -> None:
    """The same two seconds of one motion, filmed at a multiple of 8 per second: the very same frames are seen."""
    few = facts[:6]
    at_eight = extractor([WORLD.render(f, 17, SIDE, SIDE, 8.0) for f in few], [8.0] * 6)
    filmed = [WORLD.render(f, int(2 * fps) + 1, SIDE, SIDE, fps) for f in few]
    torch.testing.assert_close(extractor(filmed, [fps] * 6), at_eight)


@pytest.mark.parametrize("fps", [5.0, 12.0, 23.976, 25.0, 30.0, 60.0])
def test_the_nearest_frame_of_each_moment_is_seen(extractor: torch.nn.Module, fps: float) -> None:
    frames = math.ceil(2.1 * fps)
    clip = torch.arange(frames, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 2, 2, 3)
    shown = extractor.at_rate(clip, fps)[:, 0, 0, 0].double() / fps
    assert len(shown) == 17
    assert ((shown - torch.arange(17, dtype=torch.float64) / 8).abs() <= 0.5 / fps + 1e-9).all()


def test_the_rate_must_be_told_and_the_length_follows_from_it(extractor: torch.nn.Module) -> None:
    clip = torch.zeros((12, SIDE, SIDE, 3), dtype=torch.uint8)
    assert extractor([clip], [8.0]).shape == (1, extractor.width)
    with pytest.raises(SoraError, match="tell the frames per second"):
        extractor([clip])
    with pytest.raises(SoraError, match="one for each"):
        extractor([clip], [8.0, 8.0])
    with pytest.raises(SoraError, match=r"12 frames at 16 fps .* takes at least 17"):
        extractor([clip], [16.0])
    for fps in (5.0, 8.0, 12.5, 29.97, 60.0):
        least = extractor.least_frames(fps)
        assert frames_read(least, fps) >= MIN_FRAMES > frames_read(least - 1, fps)
