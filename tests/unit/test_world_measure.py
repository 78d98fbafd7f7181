"""Measuring: right on real clips, also blurred and noisy ones; silent on nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

from lightning_sora.errors import SoraError
from lightning_sora.world import LEVELS, World, measure

PANNING = replace(LEVELS["tiny"], cameras=("static", "pan_left", "pan_right"))


def degraded(video: Tensor, seed: int) -> Tensor:
    """Blurred by 0.7 pixels, with noise of 8 levels."""
    blurred = gaussian_blur(video.permute(0, 3, 1, 2).float(), [5, 5], [0.7, 0.7]).permute(0, 2, 3, 1)
    noise = 8 * torch.randn(blurred.shape, generator=torch.Generator().manual_seed(seed))
    return (blurred + noise).round().clamp(0, 255).to(torch.uint8)


@pytest.mark.slow
@pytest.mark.parametrize(("size", "clips"), [(32, 48), (48, 8), (64, 4)])
def test_tiny_clips_are_read_right(size: int, clips: int) -> None:
    world = World("tiny", seed=11)
    for index in range(clips):
        facts = world.facts(index)
        thing = facts.objects[0]
        video = world.render(facts, 17, size, size, 8)
        for seen in (video, degraded(video, index)):
            found = measure(seen)
            assert (found.color, found.motion, found.shape) == (thing.color, thing.motion, thing.shape), index
            assert (found.size, found.camera) == (thing.size, "static"), index


def test_camera_pans_are_told_from_a_still_camera() -> None:
    world = World(PANNING, seed=12)
    motions = set()
    for index in range(16):
        facts = world.facts(index)
        found = measure(world.render(facts, 17, 32, 32, 8), PANNING)
        assert found.camera == facts.camera.motion, index
        # The object's motion is over the ground, whatever the camera does.
        assert found.motion == facts.objects[0].motion, index
        motions.add(found.camera)
    assert len(motions) == 3


def test_a_clip_played_backwards_moves_the_other_way() -> None:
    world = World("tiny")
    opposite = {"right": "left", "left": "right", "away": "toward", "toward": "away"}
    for index in range(8):
        facts = world.facts(index)
        turned = "_".join(opposite[part] for part in facts.objects[0].motion.split("_"))
        assert measure(world.render(facts, 17, 32, 32, 8).flip(0)).motion == turned


def test_a_grey_clip_yields_nothing() -> None:
    found = measure(torch.full((5, 32, 32, 3), 130, dtype=torch.uint8))
    assert (found.color, found.shape, found.size, found.motion) == (None,) * 4


def test_a_still_has_colour_and_shape_but_no_motion() -> None:
    world = World("tiny")
    facts = world.facts(3)
    found = measure(world.render(facts, 1, 48, 48, 8))
    assert (found.color, found.shape) == (facts.objects[0].color, facts.objects[0].shape)
    assert found.motion is None
    assert found.camera is None


def test_what_is_no_video_is_refused() -> None:
    with pytest.raises(SoraError, match="uint8"):
        measure(torch.zeros(5, 32, 32, 3))
