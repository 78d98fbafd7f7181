"""Rendering: against closed forms, and across sizes and rates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from lightning_sora.world import CAMERAS, LEVELS, MOTIONS, World, WorldConfig
from lightning_sora.world.motion import camera_path
from lightning_sora.world.shapes import (
    CONE_HALF,
    CONE_RADIUS,
    CUBE_HALF,
    CYLINDER_HALF,
    CYLINDER_RADIUS,
    SOLIDS,
    TORUS_RING,
    TORUS_TUBE,
)

# Whether a point is inside each unit solid: the definition, with no ray in it.
INSIDE: dict[str, Callable[[Tensor], Tensor]] = {
    "sphere": lambda p: p.norm(dim=0) - 1,
    "cube": lambda p: p.abs().amax(0) - CUBE_HALF,
    "cylinder": lambda p: torch.maximum(p[:2].norm(dim=0) - CYLINDER_RADIUS, p[2].abs() - CYLINDER_HALF),
    "cone": lambda p: torch.maximum(
        p[:2].norm(dim=0) - CONE_RADIUS * (CONE_HALF - p[2]) / (2 * CONE_HALF), p[2].abs() - CONE_HALF
    ),
    "torus": lambda p: torch.hypot(p[:2].norm(dim=0) - TORUS_RING, p[2]) - TORUS_TUBE,
}


@pytest.mark.parametrize("shape", SOLIDS)
def test_rays_meet_the_first_point_of_a_solid(shape: str) -> None:
    generator = torch.Generator().manual_seed(0)
    origin = torch.nn.functional.normalize(torch.randn(3, 1500, generator=generator), dim=0) * 4
    direction = (torch.rand(3, 1500, generator=generator) * 2.4 - 1.2 - origin) * 0.4
    distance = SOLIDS[shape].intersect(origin, direction)
    steps = torch.linspace(0, 6, 900)
    points = origin[:, :, None] + direction[:, :, None] * steps
    gap = INSIDE[shape](points.flatten(1)).view(1500, 900)
    entered = gap < 0
    first = steps[entered.int().argmax(1)]
    # Rays that only graze may be judged either way by the samples.
    clear = gap.amin(1).abs() > 0.02
    assert clear.float().mean() > 0.9
    assert torch.equal(distance.isfinite()[clear], entered.any(1)[clear])
    hit = clear & entered.any(1)
    assert hit.sum() > 200
    assert (distance - first)[hit].abs().quantile(0.99) < 0.01
    normal = SOLIDS[shape].normal((origin + distance * direction)[:, hit])
    assert ((normal * direction[:, hit]).sum(0) < 0).float().mean() > 0.99


def test_depth_of_a_sphere_agrees_with_the_closed_form() -> None:
    config = WorldConfig(shapes=("sphere",), motions=("still",), sizes=("big",), holdout=0, yaw=(0, 0))
    world = World(config)
    facts = world.facts(0)
    size = 33
    rendering = world.render_all(facts, 1, size, size, 8)
    assert rendering.depth is not None
    assert rendering.object_ids is not None
    pitch, distance = math.radians(facts.camera.pitch), facts.camera.distance
    right, forward = torch.tensor([1.0, 0, 0]), torch.tensor([0, math.cos(pitch), -math.sin(pitch)])
    up = torch.tensor([0, math.sin(pitch), math.cos(pitch)])
    eye = torch.tensor(facts.camera.target) - distance * forward
    thing = facts.objects[0]
    to_center = torch.tensor([*thing.center, thing.radius]) - eye
    for row, column in ((16, 16), (12, 18), (20, 13), (2, 2), (30, 25)):
        tangent = math.tan(math.radians(facts.camera.fov / 2)) / (size / 2)
        ray = forward + (column + 0.5 - size / 2) * tangent * right + (size / 2 - row - 0.5) * tangent * up
        along = (ray @ to_center) / (ray @ ray)
        miss = (to_center - along * ray).norm()
        if miss < thing.radius:
            expected = along - math.sqrt(thing.radius**2 - miss**2) / ray.norm()
        else:
            expected = -eye[2] / ray[2]
        assert rendering.depth[0, row, column] == pytest.approx(float(expected), abs=2e-3)
        assert (rendering.object_ids[0, row, column] == 0) == bool(miss < thing.radius)


@pytest.mark.parametrize("level", LEVELS)
def test_sizes_and_rates_show_the_same_event(level: str) -> None:
    world = World(level)
    for index in range(6):
        facts = world.facts(index)
        slow = world.trajectory(facts, 5, 4, 32, 32)
        fast = world.trajectory(facts, 17, 16, 96, 96)
        assert torch.allclose(slow.positions, fast.positions[::4], atol=1e-5)
        assert torch.allclose(slow.projected * 3, fast.projected[::4], atol=1e-3)
        assert torch.allclose(slow.visibility, fast.visibility[::4])
        wide = world.trajectory(facts, 5, 4, 32, 64)
        assert torch.allclose(wide.projected - torch.tensor([32.0, 16]), slow.projected - 16, atol=1e-3)
    coarse = world.render(facts, 5, 24, 24, 4).float()
    fine = world.render(facts, 9, 96, 96, 8)[::2].float()
    pooled = fine.view(5, 24, 4, 24, 4, 3).mean((2, 4))
    assert (pooled - coarse).abs().mean() < 6


def test_a_still_is_the_first_frame() -> None:
    world = World("hard")
    facts = world.facts(1)
    assert torch.equal(world.render(facts, 1, 20, 30, 8)[0], world.render(facts, 4, 20, 30, 8)[0])


def test_objects_are_seen_where_they_are_said_to_be() -> None:
    world = World(
        replace(LEVELS["simple"], shapes=("sphere",), motions=tuple(set(MOTIONS) - {"spin", "behind"}), holdout=0)
    )
    for index in range(10):
        facts = world.facts(index)
        clip = world.render(facts, 5, 64, 64, 2).float()
        coloured = (clip.amax(-1) - clip.amin(-1) > 60).float()
        path = world.trajectory(facts, 5, 2, 64, 64)
        for frame in range(5):
            if path.visibility[frame, 0] < 0.99:
                continue
            mass = coloured[frame].sum()
            x = (coloured[frame].sum(0) * (torch.arange(64) + 0.5)).sum() / mass
            y = (coloured[frame].sum(1) * (torch.arange(64) + 0.5)).sum() / mass
            assert (torch.stack([x, y]) - path.projected[frame, 0]).norm() < 1.5


def test_visibility_through_an_occluder_is_the_share_of_coloured_pixels_left() -> None:
    config = replace(LEVELS["simple"], motions=("behind",), cameras=("static",))
    world = World(config)
    for index in range(4):
        facts = world.facts(index)
        assert facts.occluder is not None
        visibility = world.trajectory(facts, 17, 8, 64, 64).visibility[:, 0]
        assert visibility[0] > 0.85
        assert visibility[-1] > 0.85
        assert visibility.min() < 0.25
        bare = replace(facts, occluder=None)
        behind, alone = ((world.render_all(one, 17, 64, 64, 8).object_ids == 0).sum((1, 2)) for one in (facts, bare))
        framed = world.trajectory(bare, 17, 8, 64, 64).visibility[:, 0]
        assert torch.allclose(visibility, framed * behind / alone, atol=0.06)


# How ground points move in the image, as (x, y) of the centre, and growth of distances.
SEEN: dict[str, tuple[int, int, int]] = {
    "static": (0, 0, 0),
    "pan_left": (1, 0, 0),
    "pan_right": (-1, 0, 0),
    "tilt_up": (0, 1, 0),
    "tilt_down": (0, -1, 0),
    "dolly_in": (0, 0, 1),
    "dolly_out": (0, 0, -1),
    "zoom_in": (0, 0, 1),
    "zoom_out": (0, 0, -1),
    "orbit_left": (0, 0, 0),
    "orbit_right": (0, 0, 0),
}


@pytest.mark.parametrize("motion", CAMERAS)
def test_ground_points_move_against_the_camera(motion: str) -> None:
    facts = World(replace(LEVELS["simple"], cameras=(motion,))).facts(0)
    times = torch.tensor([0.0, 2.0])
    camera = camera_path(facts.camera, times, facts.duration)
    ground = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [-0.5, 0, 0], [0, 1.0, 0]]).expand(2, 4, 3)
    spots, depth = camera.project(ground, 64, 64)
    assert (depth > 0).all()
    moved = spots[1, 0] - spots[0, 0]
    growth = (spots[1, 1] - spots[1, 2]).norm() / (spots[0, 1] - spots[0, 2]).norm()
    x, y, larger = SEEN[motion]
    assert int(torch.sign(moved[0]) * (moved[0].abs() > 4)) == x
    assert int(torch.sign(moved[1]) * (moved[1].abs() > 6)) == y
    assert int(torch.sign(growth.log()) * (growth.log().abs() > 0.15)) == larger
    # Going round, what lies behind the centre passes to the side that the camera moves to.
    behind = spots[1, 3, 0] - spots[1, 0, 0] - spots[0, 3, 0] + spots[0, 0, 0]
    if motion.startswith("orbit"):
        assert behind * (1 if motion.endswith("right") else -1) > 2


def test_rendering_in_pieces_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World("hard")
    facts = world.facts(0)
    whole = world.render(facts, 5, 16, 16, 4)
    monkeypatch.setattr("lightning_sora.world.render.RAYS_AT_ONCE", 1)
    assert torch.equal(world.render(facts, 5, 16, 16, 4), whole)
