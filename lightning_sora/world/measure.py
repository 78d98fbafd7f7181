"""Reads the facts of a one-object clip back from its pixels, with no learned part.

A world's ground, sky and walls are grey, so whatever has colour is the object. Projecting every
pixel's chroma on the object's own gives a map of coverage times shading, in which neither the
colour nor the background is left. Its centroids, cast onto the ground through the known camera,
give the motion; its mean around the centroid, compared with renderings of every shape and size in
that motion, gives the shape.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from jaxtyping import Float, UInt8
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.world.config import COLORS, DIRECTIONS, WorldConfig, world_config
from lightning_sora.world.draw import draw_facts
from lightning_sora.world.facts import CameraFacts
from lightning_sora.world.measure_camera import camera_motion, unproject
from lightning_sora.world.motion import CameraPath, camera_path
from lightning_sora.world.render import render

COLOURED = 0.16  # chroma below this is grey, noise or haze
COVERED = 0.22  # share of the object's own chroma from which a pixel counts as the object's
SEEN_SHARE = 0.25  # of the median frame's coverage; frames below it say nothing of the place
MOVED_SHARE = 0.3  # of the way that a straight motion makes; below it the object is still
CENTROID_HEIGHT = 0.8  # world units above ground, about the middle of every object
PATCH, PATCH_SIZE = 3.4, 24  # world units and samples along a side of the patch that shows the shape
BLURS = (0.0, 0.7, 1.2)  # pixels; templates are compared at each
TEMPLATE_FRAMES = 5


@dataclass(frozen=True)
class Measurement:
    """What was read from a clip; None where it could not be.

    Attributes:
        color, shape, size: as in the world's configuration.
        motion: one of the eight directions, or "still".
    """

    color: str | None = None
    shape: str | None = None
    size: str | None = None
    motion: str | None = None
    camera: str | None = None


@torch.no_grad()
def measure(
    video: UInt8[Tensor, "frames height width 3"], config: WorldConfig | str = "tiny", fps: float = 8.0
) -> Measurement:
    """Reads colour, shape, size, motion direction and camera motion of a one-object clip.

    Args:
        video: display values 0 to 255.
        config: the world that the clip shows, or should show: its camera, vocabulary and duration.
        fps: frames per second.

    Raises:
        SoraError: not a uint8 video, or an unknown level.
    """
    if video.dtype != torch.uint8 or video.ndim != 4 or video.shape[-1] != 3:
        raise SoraError(
            f"cannot measure a {video.dtype} tensor of shape {tuple(video.shape)}; give uint8 [frames height width 3]"
        )
    config = world_config(config)
    frames, height, width, _ = video.shape
    pixels = video.float() / 255
    color, coverage = find_object(pixels, config.colors)
    if color is None:
        return Measurement()
    times = torch.arange(frames) / fps
    paths = {name: camera_path(pose, times, config.duration) for name, pose in camera_poses(config).items()}
    camera = camera_motion(pixels, paths)
    path = paths[camera or "static"]
    centers, mass = centroids(coverage)
    motion = ground_motion(centers, mass, path, height, width, config, fps)
    patch = mean_patch(coverage, centers, mass, config)
    shape, size = best_match(patch, motion or "still", config, frames, height, width, fps)
    return Measurement(color, shape, size, motion, camera)


def find_object(
    pixels: Float[Tensor, "frames height width 3"], colors: tuple[str, ...]
) -> tuple[str | None, Float[Tensor, "frames height width"]]:
    """The colour of whatever is not grey, and how far each pixel shows it (coverage times shading)."""
    chroma = pixels - reduce(pixels, "frames h w rgb -> frames h w 1", "mean")
    strength = chroma.norm(dim=-1)
    coloured = strength > COLOURED
    if coloured.sum() < 2 * len(pixels):
        return None, strength
    mean = (chroma * (strength * coloured)[..., None]).sum((0, 1, 2))
    palette = torch.tensor([COLORS[color] for color in colors])
    palette = palette - palette.mean(1, keepdim=True)
    best = int((F.normalize(palette, dim=1) @ mean).argmax())
    own = palette[best]
    return colors[best], einsum(chroma, own / own.square().sum(), "frames h w rgb, rgb -> frames h w")


def centroids(
    coverage: Float[Tensor, "frames height width"],
) -> tuple[Float[Tensor, "frames 2"], Float[Tensor, " frames"]]:
    """Pixel centroid (x, y; centres at halves) of the object per frame, and its mass, 0 where unseen."""
    _, height, width = coverage.shape
    weight = (coverage - COVERED).clamp(0, 0.3)
    mass = weight.sum((1, 2))
    x = (weight.sum(1) * (torch.arange(width) + 0.5)).sum(1) / mass.clamp(min=1e-6)
    y = (weight.sum(2) * (torch.arange(height) + 0.5)).sum(1) / mass.clamp(min=1e-6)
    return torch.stack([x, y], dim=1), mass * (mass > SEEN_SHARE * mass.median())


def camera_poses(config: WorldConfig) -> dict[str, CameraFacts]:
    """The camera motions to tell apart, each from the middle of the world's poses."""
    pitch = (sum(config.pitch) / 2,) * 2
    names = dict.fromkeys(("static", "pan_left", "pan_right", *config.cameras))
    return {
        name: draw_facts(replace(config, cameras=(name,), pitch=pitch, occluder=0.0), 0, "all", 0).camera
        for name in names
    }


def ground_motion(
    centers: Float[Tensor, "frames 2"],
    mass: Float[Tensor, " frames"],
    path: CameraPath,
    height: int,
    width: int,
    config: WorldConfig,
    fps: float,
) -> str | None:
    """The nearest of the eight directions to the line through the places on the ground, or "still"."""
    times = torch.arange(len(centers)) / fps
    weight = mass / mass.sum()
    if (mass > 0).sum() < 2:
        return None
    half = min(height, width) / 2
    x, y = (centers[:, :1] - width / 2) / half, (height / 2 - centers[:, 1:]) / half
    place = unproject(x, y, path, CENTROID_HEIGHT)[:, 0, :2]
    centered = times - (weight * times).sum()
    slope = (weight * centered) @ (place - weight @ place) / (weight @ centered.square())
    seconds = min(float(times[-1]), config.duration)
    if slope.norm() * seconds < MOVED_SHARE * config.travel * seconds / config.duration:
        return "still"
    names, headings = zip(*DIRECTIONS.items(), strict=True)
    return names[int((torch.tensor(headings) @ slope).argmax())]


def mean_patch(
    coverage: Float[Tensor, "frames height width"],
    centers: Float[Tensor, "frames 2"],
    mass: Float[Tensor, " frames"],
    config: WorldConfig,
) -> Float[Tensor, "side side"]:
    """The coverage around the object's centroid, averaged over the frames that show it."""
    _, height, width = coverage.shape
    seen = mass > 0
    reach = PATCH / config.stage * min(height, width) / 2
    steps = (torch.arange(PATCH_SIZE) + 0.5) / PATCH_SIZE * 2 - 1
    x = (centers[seen, 0, None] + steps * reach) * 2 / width - 1
    y = (centers[seen, 1, None] + steps * reach) * 2 / height - 1
    grid = torch.stack([x[:, None, :].expand(-1, PATCH_SIZE, -1), y[:, :, None].expand(-1, -1, PATCH_SIZE)], dim=-1)
    patches = F.grid_sample(coverage[seen, None], grid, padding_mode="zeros", align_corners=False)
    return reduce(patches, "frames 1 row column -> row column", "mean")


@lru_cache(maxsize=512)
def templates(
    config: WorldConfig, motion: str, frames: int, height: int, width: int, fps: float
) -> tuple[list[tuple[str, str]], Float[Tensor, "templates side side"]]:
    """The mean patch of every (shape, size, blur) in a motion."""
    labels, patches = [], []
    for shape in config.shapes:
        for size in config.sizes:
            one = replace(
                config, colors=(config.colors[0],), shapes=(shape,), sizes=(size,), motions=(motion,), spread=0.0,
                cameras=("static",), holdout=0, occluder=0.0, objects=(1, 1), vary_scene=False,
            )  # fmt: skip
            count = min(frames, TEMPLATE_FRAMES)
            rate = fps * (count - 1) / max(frames - 1, 1) or fps
            clip = render(draw_facts(one, 0, "all", 0), count, height, width, rate).video.float() / 255
            _, coverage = find_object(clip, one.colors)
            patch = mean_patch(coverage, *centroids(coverage), config)
            for blur in BLURS:
                labels.append((shape, size))
                patches.append(_blurred(patch, blur * PATCH_SIZE / (PATCH / config.stage * min(height, width))))
    return labels, torch.stack(patches)


def _blurred(patch: Float[Tensor, "side side"], sigma: float) -> Float[Tensor, "side side"]:
    if sigma == 0:
        return patch
    offset = torch.arange(PATCH_SIZE)
    kernel = (-(offset[:, None] - offset).square() / (2 * sigma**2)).exp() / (sigma * math.sqrt(2 * math.pi))
    return kernel @ patch @ kernel


def best_match(
    patch: Float[Tensor, "side side"],
    motion: str,
    config: WorldConfig,
    frames: int,
    height: int,
    width: int,
    fps: float,
) -> tuple[str, str]:
    """The (shape, size) whose template correlates best with the patch."""
    labels, known = templates(config, motion, frames, height, width, fps)
    flat = F.normalize(rearrange(known, "templates row column -> templates (row column)"), dim=1)
    return labels[int((flat @ patch.flatten()).argmax())]
