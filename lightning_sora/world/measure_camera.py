"""Tells how the camera moved, from the ground alone.

The ground is a plane, so every hypothesis about the camera says exactly where each of its points
is in each frame: the hypothesis under which the frames, carried over onto one another, agree best
is taken.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from einops import einsum, rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from lightning_sora.world.motion import CameraPath
from lightning_sora.world.render import image_points

COMPARED = 5  # frames, evenly over the clip
COLOURED = 0.12  # chroma from which a pixel is an object's, not the ground's
SMOOTHING = 1.0  # pixels; makes noise matter less, and equally to all hypotheses
OUTLIER = 0.12  # of brightness; shadows and walls move otherwise than the ground and must not decide
ADVANTAGE = 0.8  # of the still camera's error, below which another hypothesis is believed
LEAST_OVERLAP = 0.1  # of the pixels, without which frames say nothing of one another


def camera_motion(pixels: Float[Tensor, "frames height width 3"], paths: Mapping[str, CameraPath]) -> str | None:
    """The name of the path that explains the ground best; "static" unless another is clearly better.

    Args:
        pixels: display values 0 to 1.
        paths: the hypotheses over the clip's frames, "static" among them.

    Returns:
        None for a single frame.
    """
    frames = len(pixels)
    if frames < 2:
        return None
    chosen = torch.linspace(0, frames - 1, min(frames, COMPARED)).round().long()
    pixels = pixels[chosen]
    grey = smooth(reduce(pixels, "frames h w rgb -> frames h w", "mean"))
    plain = (pixels.amax(-1) - pixels.amin(-1) < COLOURED).float()
    plain = 1 - F.max_pool2d(1 - plain[:, None], 3, stride=1, padding=1)[:, 0]
    errors = {name: disagreement(grey, plain, path[chosen]) for name, path in paths.items()}
    best = min(errors, key=errors.__getitem__)
    return best if errors[best] < ADVANTAGE * errors["static"] else "static"


def disagreement(
    grey: Float[Tensor, "frames height width"], plain: Float[Tensor, "frames height width"], path: CameraPath
) -> float:
    """Mean difference between the frames and their middle one, carried over along the ground."""
    frames, height, width = grey.shape
    middle = frames // 2
    x, y, _ = image_points(height, width, 1)
    points = unproject(x.expand(frames, -1), y.expand(frames, -1), path, 0.0)
    spots, depth = path[middle : middle + 1].project(
        rearrange(points, "frames rays i -> 1 (frames rays) i"), height, width
    )
    grid = rearrange(
        spots / torch.tensor([width, height]) * 2 - 1, "1 (frames h w) i -> 1 frames (h w) i", h=height, w=width
    )
    layers = torch.stack([grey[middle], plain[middle]])[None]
    there = F.grid_sample(layers, grid, padding_mode="zeros", align_corners=False)[0]
    there = rearrange(there, "layers frames (h w) -> layers frames h w", h=height)
    weight = plain * there[1] * rearrange(depth > 0, "1 (frames h w) -> frames h w", h=height, w=width)
    weight = weight * (there[1] > 0.99)
    weight[middle] = 0
    if weight.sum() < LEAST_OVERLAP * weight.numel():
        return float("inf")
    difference = (grey - there[0]).abs().clamp(max=OUTLIER)
    return float(einsum(difference, weight, "frames h w, frames h w ->") / weight.sum())


def unproject(
    x: Float[Tensor, "frames points"], y: Float[Tensor, "frames points"], path: CameraPath, level: float
) -> Float[Tensor, "frames points 3"]:
    """Where rays cross the plane at a height above ground; beyond the horizon, behind the camera.

    Args:
        x, y: right and up in the image, in halves of the frame's shorter side.
    """
    right, up, forward = (rearrange(path.axes[:, basis], "frames i -> frames 1 i") for basis in range(3))
    tangent = rearrange(path.tangent, "frames -> frames 1 1")
    ray = forward + tangent * (x[..., None] * right + y[..., None] * up)
    origin = rearrange(path.position, "frames i -> frames 1 i")
    depth = (level - origin[..., 2:]) / torch.where(ray[..., 2:].abs() < 1e-3, -1e-3, ray[..., 2:])
    return origin + depth * ray


def smooth(images: Float[Tensor, "frames height width"]) -> Float[Tensor, "frames height width"]:
    """A Gaussian blur of ``SMOOTHING`` pixels."""
    offset = torch.arange(-3, 4)
    kernel = F.normalize((-(offset.float() ** 2) / (2 * SMOOTHING**2)).exp(), p=1, dim=0)
    padded = F.pad(images[:, None], (3, 3, 3, 3), mode="replicate")
    return F.conv2d(F.conv2d(padded, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1))[:, 0]
