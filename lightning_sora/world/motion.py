"""Motion as a function of time in seconds: of objects, and of the camera."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from lightning_sora.world.config import COLLISION, DIRECTIONS
from lightning_sora.world.facts import CameraFacts, ObjectFacts
from lightning_sora.world.shapes import SOLIDS

BOUNCE_PERIOD = 0.8  # seconds from ground to ground
SPIN_PERIOD = 2.0  # seconds a turn
ORBIT_PERIOD = 2.6  # seconds a round
SPIN_TILT = 35.0  # degrees; a leaning body makes its turning visible
FALL_SHARE = 0.75  # of the duration until the ground is reached
HIT_SHARE = 0.4  # of the duration until two things collide

# How far the camera's parameters move over the duration, symmetric about the middle pose.
PAN_SHARE, TILT_SHARE = 0.45, 0.35  # of the angle of view
DOLLY_SHARE = 0.4  # of the distance
ZOOM_RATIO = 1.6  # of the focal length
ORBIT_ANGLE = 50.0  # degrees


def _progress(times: Float[Tensor, " frames"], duration: float) -> Float[Tensor, " frames"]:
    return (times / duration).clamp(0, 1)


def positions(thing: ObjectFacts, times: Sequence[float] | Tensor, duration: float) -> Float[Tensor, "frames 3"]:
    """Where the object's centre is at the given seconds, in world units."""
    times = torch.as_tensor(times, dtype=torch.float32)
    x, y = (torch.full_like(times, value) for value in thing.center)
    solid = SOLIDS[thing.shape]
    z = torch.full_like(times, solid.half_height * thing.radius)
    if thing.motion in DIRECTIONS or thing.motion == "behind":
        along = (_progress(times, duration) - 0.5) * thing.travel
        x, y = x + along * thing.heading[0], y + along * thing.heading[1]
    elif thing.motion in COLLISION:
        along = thing.travel * struck_path(_progress(times, duration), HIT_SHARE, thing.motion, thing.rebound)
        x, y = x + along * thing.heading[0], y + along * thing.heading[1]
    elif thing.motion == "bounce":
        part = (times / BOUNCE_PERIOD + thing.phase) % 1.0
        z = z + thing.travel * 4 * part * (1 - part)
    elif thing.motion == "fall":
        fallen = (times / (FALL_SHARE * duration)).clamp(max=1) ** 2
        z = z + thing.travel * (1 - fallen)
    elif thing.motion == "orbit":
        angle = 2 * math.pi * (times / ORBIT_PERIOD + thing.phase)
        x, y = x + thing.travel * angle.cos(), y + thing.travel * angle.sin()
    elif thing.motion == "spin":
        z = torch.full_like(times, solid.bound * thing.radius)
    return torch.stack([x, y, z], dim=-1)


def struck_path(times: Float[Tensor, " frames"], hit: float, motion: str, rebound: float) -> Float[Tensor, " frames"]:
    """How far along its heading a thing is from where it collides, per unit of its speed.

    Args:
        times: in any unit.
        hit: when the two meet, in the same unit.
        motion: "strike" comes at speed 1 and goes on at ``rebound``; "struck" rests and goes on at speed 1.
    """
    after = (times - hit).clamp(min=0)
    return after if motion == "struck" else (times - hit).clamp(max=0) + rebound * after


def collision(radius: float, other: float) -> tuple[float, float]:
    """Velocities after a thing meets another that rests, as shares of its own before: its own, and the other's.

    Head on, without loss, and each as heavy as its radius cubed: momentum and energy are kept (Goldstein, 3.11).
    """
    share = radius**3 / (radius**3 + other**3)
    return 2 * share - 1, 2 * share


def rotations(thing: ObjectFacts, times: Float[Tensor, " frames"]) -> Float[Tensor, "frames 3 3"]:
    """Orientation of the object: the matrix that takes its own axes to the world's."""
    yaw = torch.full_like(times, math.radians(thing.yaw))
    tilt = torch.zeros_like(times)
    if thing.motion == "spin":
        yaw = yaw + 2 * math.pi * times / SPIN_PERIOD
        tilt = tilt + math.radians(SPIN_TILT)
    zero, one = torch.zeros_like(times), torch.ones_like(times)
    turn = torch.stack([yaw.cos(), -yaw.sin(), zero, yaw.sin(), yaw.cos(), zero, zero, zero, one])
    lean = torch.stack([one, zero, zero, zero, tilt.cos(), -tilt.sin(), zero, tilt.sin(), tilt.cos()])
    return einsum(
        rearrange(turn, "(i j) frames -> frames i j", i=3),
        rearrange(lean, "(j k) frames -> frames j k", k=3),
        "frames i j, frames j k -> frames i k",
    )


@dataclass(frozen=True)
class CameraPath:
    """A pinhole camera over time.

    Attributes:
        position: world units.
        axes: rows are the camera's right, up and forward in world axes.
        tangent: of half the angle of view over the frame's shorter side.
        moving: False if all frames see from the same pose.
    """

    position: Float[Tensor, "frames 3"]
    axes: Float[Tensor, "frames 3 3"]
    tangent: Float[Tensor, " frames"]
    moving: bool

    def project(
        self, points: Float[Tensor, "frames ... 3"], height: int, width: int
    ) -> tuple[Float[Tensor, "frames ... 2"], Float[Tensor, "frames ..."]]:
        """Pixel coordinates (x right, y down, pixel centres at halves) and depth along the optical axis."""
        frames = points.shape[0]
        shape = (frames, *[1] * (points.ndim - 2))
        offset = points - self.position.view(*shape, 3)
        right, up, depth = einsum(self.axes, offset, "frames basis i, frames ... i -> frames ... basis").unbind(-1)
        scale = min(height, width) / 2 / (self.tangent.view(shape) * depth)
        return torch.stack([width / 2 + right * scale, height / 2 - up * scale], dim=-1), depth

    def rays(self, x: Float[Tensor, " rays"], y: Float[Tensor, " rays"]) -> Float[Tensor, "3 frames rays"]:
        """Directions through points of the image plane, of unit length along the optical axis.

        Args:
            x, y: right and up, in halves of the frame's shorter side.
        """
        right, up, forward = (rearrange(self.axes[:, axis], "frames i -> i frames 1") for axis in range(3))
        tangent = rearrange(self.tangent, "frames -> frames 1")
        return forward + (tangent * x) * right + (tangent * y) * up

    def __getitem__(self, frames: slice | Tensor) -> CameraPath:
        return CameraPath(self.position[frames], self.axes[frames], self.tangent[frames], self.moving)


def camera_path(camera: CameraFacts, times: Float[Tensor, " frames"], duration: float) -> CameraPath:
    """The camera at the given seconds; a motion is symmetric about the pose of the facts."""
    swing = _progress(times, duration) - 0.5
    still = torch.zeros_like(times)
    yaw, orbit, pitch = still, still, still + math.radians(camera.pitch)
    distance = still + camera.distance
    tangent = still + math.tan(math.radians(camera.fov / 2))
    kind, _, way = camera.motion.partition("_")
    sign = -1.0 if way in ("left", "down", "out") else 1.0
    if kind == "pan":
        yaw = sign * swing * math.radians(PAN_SHARE * camera.fov)
    elif kind == "tilt":
        pitch = pitch - sign * swing * math.radians(TILT_SHARE * camera.fov)
    elif kind == "dolly":
        distance = distance * (1 - sign * swing * DOLLY_SHARE)
    elif kind == "zoom":
        tangent = tangent * ZOOM_RATIO ** (-sign * swing)
    elif kind == "orbit":
        # Going round to the right, the camera looks ever more to the left.
        orbit = -sign * swing * math.radians(ORBIT_ANGLE)
    position = torch.tensor(camera.target) - distance[:, None] * _axes(orbit, still + math.radians(camera.pitch))[:, 2]
    return CameraPath(position, _axes(orbit + yaw, pitch), tangent, kind != "static")


def _axes(yaw: Float[Tensor, " frames"], pitch: Float[Tensor, " frames"]) -> Float[Tensor, "frames 3 3"]:
    """Right, up and forward of a camera turned right by ``yaw`` and looking down by ``pitch`` radians."""
    zero = torch.zeros_like(yaw)
    right = torch.stack([yaw.cos(), -yaw.sin(), zero], dim=-1)
    forward = torch.stack([yaw.sin() * pitch.cos(), yaw.cos() * pitch.cos(), -pitch.sin()], dim=-1)
    return torch.stack([right, torch.linalg.cross(right, forward), forward], dim=1)
