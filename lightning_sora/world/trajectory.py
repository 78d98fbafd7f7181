"""Where the objects of a clip are, in space and in the image, and how much of them is seen."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from lightning_sora.world.facts import Facts
from lightning_sora.world.motion import camera_path
from lightning_sora.world.render import bodies, cast

SAMPLES = 64  # across the frame's shorter side, for visibility
MARGIN = 2.0  # the field on which an object's full outline is counted, in frames


@dataclass(frozen=True)
class Trajectory:
    """Paths of the objects of a clip.

    Attributes:
        positions: centres in world units (x right, y away, z up).
        projected: centres in pixels (x right, y down; the first pixel's centre is at 0.5).
        depth: of the centres along the optical axis, world units.
        visibility: share of the object's outline that is in the frame and hidden by nothing, 0 to 1.
    """

    positions: Float[Tensor, "frames objects 3"]
    projected: Float[Tensor, "frames objects 2"]
    depth: Float[Tensor, "frames objects"]
    visibility: Float[Tensor, "frames objects"]


@torch.no_grad()
def trajectory(facts: Facts, frames: int, fps: float, height: int, width: int) -> Trajectory:
    """The paths of a clip's objects; see ``World.trajectory``."""
    times = torch.arange(frames) / fps
    camera = camera_path(facts.camera, times, facts.duration)
    things = bodies(facts, times)
    count = len(facts.objects)
    centers = torch.stack([thing.center for thing in things[:count]], dim=1)
    projected, depth = camera.project(centers, height, width)

    edge_x, edge_y = (side / min(height, width) for side in (width, height))
    x, y = (_spaced(MARGIN * edge) for edge in (edge_x, edge_y))
    x, y = (axis.flatten() for axis in torch.meshgrid(x, y, indexing="xy"))
    framed = (x.abs() < edge_x) & (y.abs() < edge_y)
    origin, direction = rearrange(camera.position, "frames i -> i frames 1"), camera.rays(x, y)
    nearest = cast(origin, direction, things, frames).ids
    shares = []
    for thing in things[:count]:
        alone = cast(origin, direction, [thing], frames).ids == thing.id
        seen = (nearest == thing.id) & framed
        shares.append(seen.sum(1) / alone.sum(1).clamp(min=1))
    return Trajectory(centers, projected, depth, torch.stack(shares, dim=1))


def _spaced(edge: float) -> Float[Tensor, " samples"]:
    """Evenly spaced points of (-edge, edge), in halves of the frame's shorter side."""
    count = max(1, round(edge * SAMPLES))
    return ((torch.arange(count) + 0.5) / count * 2 - 1) * edge
