"""Ray casting: one ray per subpixel, analytic hits, a lamp of some extent for soft shadows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from lightning_sora.world.config import COLORS
from lightning_sora.world.facts import Facts, SceneFacts
from lightning_sora.world.motion import CameraPath, camera_path, positions, rotations
from lightning_sora.world.shapes import SOLIDS, Solid, dot

SUPERSAMPLE = 2  # rays per pixel and axis
RAYS_AT_ONCE = 1 << 17  # keeps the working set near the cache
LIGHT_HEIGHT = 52.0  # degrees above the horizon
LAMP_RADIUS = 0.06  # of the light's direction: the width of penumbras per distance
AMBIENT, DIFFUSE, SHINE = 0.42, 0.62, 0.22
SHADOW = 0.5  # what is left of the ground's brightness in full shadow
OCCLUDER_GREY = 0.42
BACKGROUND, OCCLUDER = -1, -2  # object ids of what is no coloured object
HAZE = 25.0  # world units beyond the scene's centre over which the ground fades into the sky


@dataclass(frozen=True)
class Rendering:
    """A rendered clip.

    Attributes:
        video: display values 0 to 255.
        depth: distance along the optical axis through pixel centres, world units; infinite in the sky.
        object_ids: which object a pixel's centre shows; -1 ground or sky, -2 the occluder.
    """

    video: UInt8[Tensor, "frames height width 3"]
    depth: Float[Tensor, "frames height width"] | None = None
    object_ids: Int[Tensor, "frames height width"] | None = None


@dataclass(frozen=True)
class Body:
    """One solid in motion.

    Attributes:
        scale: stretches the unit solid along its own axes.
        rotation: its axes as columns, per frame, or one for all frames.
    """

    solid: Solid
    scale: Float[Tensor, 3]
    center: Float[Tensor, "frames 3"]
    rotation: Float[Tensor, "poses 3 3"]
    color: tuple[float, float, float]
    id: int

    @property
    def bound(self) -> float:
        return self.solid.bound * float(self.scale.max())

    def local(self, offset: Float[Tensor, "3 rays"], frame: Int[Tensor, " rays"]) -> Float[Tensor, "3 rays"]:
        """World vectors in the axes of the unit solid."""
        return _combine(offset, self._axes(frame).unbind(1)) / self.scale[:, None]

    def world_normal(self, point: Float[Tensor, "3 rays"], frame: Int[Tensor, " rays"]) -> Float[Tensor, "3 rays"]:
        """Unit normals in world axes at local surface points."""
        turned = _combine(self.solid.normal(point) / self.scale[:, None], self._axes(frame).unbind(0))
        return turned / dot(turned, turned).sqrt().clamp(min=1e-6)

    def _axes(self, frame: Int[Tensor, " rays"]) -> Float[Tensor, "own world rays"]:
        axes = rearrange(self.rotation, "frames world own -> own world frames")
        return axes[:, :, frame] if len(self.rotation) > 1 else axes


def _combine(weights: Float[Tensor, "3 rays"], columns: tuple[Tensor, ...]) -> Float[Tensor, "3 rays"]:
    """The columns of a matrix per ray, weighted and summed; unrolled, for tensors of three are slow to reduce."""
    return weights[0] * columns[0] + weights[1] * columns[1] + weights[2] * columns[2]


def bodies(facts: Facts, times: Float[Tensor, " frames"]) -> list[Body]:
    """The solids of a clip at the given seconds: its objects in order, then the occluder."""
    found = [
        Body(
            SOLIDS[thing.shape],
            torch.full((3,), thing.radius),
            positions(thing, times, facts.duration),
            rotations(thing, times if thing.motion == "spin" else times[:1]),
            COLORS[thing.color],
            index,
        )
        for index, thing in enumerate(facts.objects)
    ]
    if facts.occluder is not None:
        wall = facts.occluder
        center = torch.tensor([*wall.center, wall.half[2]]).expand(len(times), 3)
        scale = torch.tensor(wall.half) / SOLIDS["cube"].half_height
        grey = (OCCLUDER_GREY,) * 3
        found.append(Body(SOLIDS["cube"], scale, center, torch.eye(3)[None], grey, OCCLUDER))
    return found


def image_points(
    height: int, width: int, supersample: int
) -> tuple[Float[Tensor, " rays"], Float[Tensor, " rays"], Int[Tensor, " rays"]]:
    """Where the rays cross the image, right and up in halves of the shorter side, and each one's subpixel.

    Rays are ordered (subpixel row, subpixel column, row, column).
    """
    inside = (torch.arange(supersample) + 0.5) / supersample
    shape = (supersample, supersample, height, width)
    x = (torch.arange(width) + inside[:, None] - width / 2)[None, :, None, :].expand(shape)
    y = (height / 2 - torch.arange(height) - inside[:, None])[:, None, :, None].expand(shape)
    half = min(height, width) / 2
    subpixel = torch.arange(supersample**2).repeat_interleave(height * width)
    return x.reshape(-1) / half, y.reshape(-1) / half, subpixel


def lamp(azimuth: float, samples: int) -> Float[Tensor, "3 samples"]:
    """Unit directions to points of the lamp, spread over a disc in a golden-angle spiral."""
    height, turn = math.radians(LIGHT_HEIGHT), math.radians(azimuth)
    toward = torch.tensor([math.cos(height) * math.sin(turn), -math.cos(height) * math.cos(turn), math.sin(height)])
    side = torch.tensor([math.cos(turn), math.sin(turn), 0.0])
    upward = torch.linalg.cross(toward, side)
    order = torch.arange(samples)
    radius, angle = LAMP_RADIUS * ((order + 0.5) / samples).sqrt(), order * math.pi * (3 - math.sqrt(5))
    spread = side[:, None] * (radius * angle.cos()) + upward[:, None] * (radius * angle.sin())
    directions = toward[:, None] + spread
    return directions / directions.norm(dim=0)


def near(
    origin: Float[Tensor, "3 frames rays"], direction: Float[Tensor, "3 frames rays"], body: Body
) -> tuple[Int[Tensor, " kept"], Int[Tensor, " kept"]]:
    """Frame and ray numbers of the rays that enter the ball around a body."""
    (x, y, z), (dx, dy, dz) = rearrange(body.center, "frames i -> i frames 1") - origin, direction
    along = x * dx + y * dy + z * dz
    excess = x * x + y * y + z * z - body.bound**2
    length = dx * dx + dy * dy + dz * dz
    hit = (along > 0) & (along * along > excess * length)
    frame, ray = hit.nonzero(as_tuple=True)
    return frame, ray


def _pick(values: Float[Tensor, "3 frames rays"], frame: Tensor, ray: Tensor) -> Float[Tensor, "3 kept"]:
    """Values at (frame, ray), where an axis of length one stands for all."""
    frame = frame if values.shape[1] > 1 else torch.zeros_like(frame)
    ray = ray if values.shape[2] > 1 else torch.zeros_like(ray)
    return values[:, frame, ray]


@dataclass(frozen=True)
class Hits:
    """The nearest surfaces: depth and id per ray, and for each body which rays see it, and where."""

    depth: Float[Tensor, "frames rays"]
    ids: Int[Tensor, "frames rays"]
    seen: list[tuple[Tensor, Tensor, Float[Tensor, "3 rays"]]]


def cast(
    origin: Float[Tensor, "3 frames 1"], direction: Float[Tensor, "3 frames rays"], things: list[Body], frames: int
) -> Hits:
    """First hits of camera rays with the bodies; depth is infinite where there is none."""
    rays = direction.shape[2]
    depth = torch.full((frames, rays), torch.inf)
    ids = torch.full((frames, rays), BACKGROUND)
    met = []
    for body in things:
        frame, ray = near(origin, direction, body)
        offset = _pick(origin, frame, ray) - body.center[frame].T
        start, step = body.local(offset, frame), body.local(_pick(direction, frame, ray), frame)
        distance = body.solid.intersect(start, step)
        nearer = distance < depth[frame, ray]
        frame, ray, distance = frame[nearer], ray[nearer], distance[nearer]
        depth[frame, ray], ids[frame, ray] = distance, body.id
        met.append((frame, ray, start[:, nearer] + distance * step[:, nearer]))
    seen = []
    for body, (frame, ray, point) in zip(things, met, strict=True):
        kept = ids[frame, ray] == body.id
        seen.append((frame[kept], ray[kept], point[:, kept]))
    return Hits(depth, ids, seen)


def ground_depth(origin: Float[Tensor, "3 frames 1"], direction: Float[Tensor, "3 frames rays"]) -> Tensor:
    """Depth of the plane z = 0 along each ray; infinite above the horizon."""
    return torch.where(direction[2] < -1e-4, -origin[2] / direction[2].clamp(max=-1e-4), torch.inf)


def ground_tone(
    point: Float[Tensor, "2 frames rays"], footprint: Float[Tensor, "frames rays"], scene: SceneFacts
) -> Float[Tensor, "frames rays"]:
    """Grey of the ground: a cloudy checker with soft edges, even where a ray covers much of a cell."""
    turn = math.radians(scene.turn)
    x = (point[0] * math.cos(turn) - point[1] * math.sin(turn)) / scene.cell + scene.shift[0]
    y = (point[0] * math.sin(turn) + point[1] * math.cos(turn)) / scene.cell + scene.shift[1]
    checker = (4 * (math.pi * x).sin() * (math.pi * y).sin()).clamp(-1, 1)
    clouds = (1.7 * x + 0.6 * y + 1.1 * (0.9 * y).sin()).sin() + (2.3 * y - 0.8 * x + 1.3 * (0.7 * x).cos()).sin()
    resolved = (-((3 * footprint / scene.cell) ** 2)).exp()
    return scene.tone * (1 + scene.contrast * resolved * (0.75 * checker + 0.3 * clouds))


def render_chunk(facts: Facts, camera: CameraPath, things: list[Body], height: int, width: int) -> Tensor:
    """The frames of one chunk, uint8 [frames height width 3]."""
    frames = len(camera.tangent)
    x, y, subpixel = image_points(height, width, SUPERSAMPLE)
    view = camera if camera.moving else camera[:1]
    direction = view.rays(x, y)
    origin = rearrange(view.position, "frames i -> i frames 1")
    light = lamp(facts.scene.light, SUPERSAMPLE**2)[:, subpixel][:, None]

    plane = ground_depth(origin, direction)
    is_ground = plane.isfinite()
    far = torch.where(is_ground, plane, 0.0)
    ground = origin + far * direction
    ray_width = rearrange(view.tangent, "frames -> frames 1") * 2 / (min(height, width) * SUPERSAMPLE)
    footprint = far * ray_width * dot(direction, direction).sqrt() / direction[2].abs().clamp(min=1e-4)
    grey = ground_tone(ground[:2], footprint, facts.scene)
    sky = 0.80 - 0.10 * direction[2].clamp(0, 1)
    haze = torch.where(is_ground, (-((far - facts.camera.distance) / HAZE).clamp(min=0)).exp(), 0.0)
    grey = (grey * haze + sky * (1 - haze)).expand(frames, -1)

    lit = torch.ones(frames, direction.shape[2])
    for body in things:
        frame, ray = near(ground, light, body)
        kept = is_ground.expand(frames, -1)[frame, ray]
        frame, ray = frame[kept], ray[kept]
        blocked = _blocked(body, _pick(ground, frame, ray), light[:, 0, ray], frame)
        lit[frame[blocked], ray[blocked]] = SHADOW
    image = (grey * lit).expand(3, -1, -1).clone()

    hits = cast(origin, direction, things, frames)
    for body, (frame, ray, point) in zip(things, hits.seen, strict=True):
        step = _pick(direction, frame, ray)
        where = _pick(origin, frame, ray) + hits.depth[frame, ray] * step
        lights = light[:, 0, ray]
        normal = body.world_normal(point, frame)
        cosine = dot(normal, lights)
        shaded = torch.zeros_like(cosine, dtype=torch.bool)
        for other in things:
            if other is not body:
                shaded |= _blocked(other, where, lights, frame)
        cosine = torch.where(shaded, 0.0, cosine.clamp(min=0))
        halfway = lights - step / dot(step, step).sqrt()
        highlight = (dot(normal, halfway) / dot(halfway, halfway).sqrt()).clamp(min=0) ** 24
        shine = SHINE * highlight * (cosine > 0) * (body.id != OCCLUDER)
        image[:, frame, ray] = torch.tensor(body.color)[:, None] * (AMBIENT + DIFFUSE * cosine) + shine
    pixels = reduce(image, "rgb frames (s h w) -> frames h w rgb", "mean", h=height, w=width)
    return (pixels * 255).round().clamp(0, 255).to(torch.uint8)


def _blocked(
    body: Body, point: Float[Tensor, "3 rays"], light: Float[Tensor, "3 rays"], frame: Int[Tensor, " rays"]
) -> Bool[Tensor, " rays"]:
    start = body.local(point - body.center[frame].T, frame)
    return body.solid.intersect(start, body.local(light, frame)).isfinite()


@torch.no_grad()
def render(facts: Facts, frames: int, height: int, width: int, fps: float, depth: bool = False) -> Rendering:
    """Renders the clip that the facts describe; see ``World.render``."""
    times = torch.arange(frames) / fps
    camera = camera_path(facts.camera, times, facts.duration)
    at_once = max(1, RAYS_AT_ONCE // (height * width * SUPERSAMPLE**2))
    chunks = [slice(start, start + at_once) for start in range(0, frames, at_once)]
    video = torch.cat([render_chunk(facts, camera[c], bodies(facts, times[c]), height, width) for c in chunks])
    if not depth:
        return Rendering(video)
    x, y, _ = image_points(height, width, 1)
    depths, ids = [], []
    for chunk in chunks:
        origin, direction = rearrange(camera[chunk].position, "frames i -> i frames 1"), camera[chunk].rays(x, y)
        hits = cast(origin, direction, bodies(facts, times[chunk]), len(times[chunk]))
        depths.append(torch.minimum(hits.depth, ground_depth(origin, direction)))
        ids.append(torch.where(hits.depth <= depths[-1], hits.ids, BACKGROUND))
    return Rendering(
        video,
        rearrange(torch.cat(depths), "frames (h w) -> frames h w", h=height),
        rearrange(torch.cat(ids), "frames (h w) -> frames h w", h=height),
    )
