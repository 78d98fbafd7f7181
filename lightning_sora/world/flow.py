"""Exact optical flow of a world clip: where the point that a pixel shows is in the next frame."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from lightning_sora.world.facts import Facts
from lightning_sora.world.motion import camera_path
from lightning_sora.world.render import BACKGROUND, OCCLUDER, bodies, image_points, render

DEPTH_TOLERANCE = 0.03  # of the depth: a point this much behind what is seen there is hidden


@dataclass(frozen=True)
class Flow:
    """Flow from each frame to the next.

    Attributes:
        forward: pixels right and down.
        valid: the point is in the next frame, and nothing hides it there; the sky's is not known.
    """

    forward: Float[Tensor, "pairs 2 height width"]
    valid: Bool[Tensor, "pairs height width"]


@torch.no_grad()
def exact_flow(facts: Facts, frames: int, height: int, width: int, fps: float) -> Flow:
    """The flow of a clip as ``World.render`` shows it with the same arguments."""
    shown = render(facts, frames, height, width, fps, depth=True)
    assert shown.depth is not None, "asked for above"
    assert shown.object_ids is not None, "asked for above"
    times = torch.arange(frames) / fps
    camera = camera_path(facts.camera, times, facts.duration)
    things = {thing.id: thing for thing in bodies(facts, times)}
    x, y, _ = image_points(height, width, 1)
    rays = camera.rays(x, y)
    depth = rearrange(shown.depth, "t h w -> t (h w)")
    ids = rearrange(shown.object_ids, "t h w -> t (h w)")
    here = rearrange(camera.position, "t i -> t 1 i") + rearrange(rays, "i t n -> t n i") * depth[..., None]
    there = here[:-1].clone()  # the ground and the wall rest
    for number, thing in things.items():
        if number in (BACKGROUND, OCCLUDER):
            continue
        turned = thing.rotation.expand(frames, 3, 3)
        for frame in range(frames - 1):
            own = ids[frame] == number
            local = einsum(here[frame, own] - thing.center[frame], turned[frame], "n i, i j -> n j")
            there[frame, own] = thing.center[frame + 1] + einsum(local, turned[frame + 1], "n j, i j -> n i")
    spots, far = camera[slice(1, None)].project(there, height, width)
    now = torch.stack([x * min(height, width) / 2 + width / 2, height / 2 - y * min(height, width) / 2], dim=-1)
    forward = torch.nan_to_num(spots - now, nan=0.0, posinf=0.0, neginf=0.0)
    column, row = (spots[..., 0] - 0.5).round(), (spots[..., 1] - 0.5).round()
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height) & (far > 0) & depth[:-1].isfinite()
    landing = (row.clamp(0, height - 1) * width + column.clamp(0, width - 1)).nan_to_num(0).long()
    met, same = depth[1:].gather(1, landing), ids[1:].gather(1, landing) == ids[:-1]
    valid = inside & same & ((met - far).abs() < DEPTH_TOLERANCE * far + 0.05)
    return Flow(rearrange(forward, "t (h w) i -> t i h w", h=height), rearrange(valid, "t (h w) -> t h w", h=height))
