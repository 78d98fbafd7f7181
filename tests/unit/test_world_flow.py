"""Exact flow: following it from one frame to the next finds the same picture."""

import pytest
import torch
import torch.nn.functional as F

from lightning_sora.world import World
from lightning_sora.world.flow import exact_flow


@pytest.mark.parametrize(("level", "index"), [("tiny", 0), ("simple", 1), ("simple", 0), ("medium", 0), ("hard", 2)])
def test_frames_agree_along_the_flow(level: str, index: int) -> None:
    world = World(level, seed=3)
    facts = world.facts(index)
    video = world.render(facts, 6, 64, 64, 8.0).permute(0, 3, 1, 2).float() / 255
    flow = exact_flow(facts, 6, 64, 64, 8.0)
    rows, columns = torch.meshgrid(torch.arange(64.0) + 0.5, torch.arange(64.0) + 0.5, indexing="ij")
    at = torch.stack([columns + flow.forward[:, 0], rows + flow.forward[:, 1]], dim=-1) / 32 - 1
    carried = F.grid_sample(video[1:], at, align_corners=False, padding_mode="border")
    along = (carried - video[:-1]).square().mean(1)[flow.valid].mean()
    unmoved = (video[1:] - video[:-1]).square().mean(1)[flow.valid].mean()
    assert along < 0.5 * unmoved
    assert flow.valid.float().mean() > 0.85


def test_nothing_that_rests_flows_before_a_camera_that_rests() -> None:
    world = World("tiny", seed=0)
    facts = world.facts(0)
    flow = exact_flow(facts, 3, 32, 32, 8.0)
    ids = world.render_all(facts, 3, 32, 32, 8.0).object_ids
    assert ids is not None
    ground = ids[:-1] == -1
    assert flow.forward.abs().amax(1)[ground].max() < 1e-3
    assert flow.forward.norm(dim=1)[~ground].min() > 0.05


def test_a_pan_moves_the_centre_by_its_angle() -> None:
    """The camera turns about the vertical and looks down: a yaw moves the middle of the picture by its cosine."""
    world = World("simple", seed=0)
    facts = next(f for f in map(world.facts, range(200)) if f.camera.motion == "pan_right")
    flow = exact_flow(facts, 17, 65, 65, 8.0).forward
    turned = torch.deg2rad(torch.tensor(0.45 * facts.camera.fov / 16))
    pixels = 65 / 2 / torch.tan(torch.deg2rad(torch.tensor(facts.camera.fov / 2))) * torch.tan(turned)
    pixels = pixels * torch.cos(torch.deg2rad(torch.tensor(facts.camera.pitch)))
    assert flow[8, 0, 32, 32] == pytest.approx(-float(pixels), rel=0.05)
