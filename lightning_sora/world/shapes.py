"""Unit solids: where a ray meets them, and which way the surface faces there.

Every solid is centred on the origin with its axis along z. Points and directions are stacked as
``3 rays``, so that each coordinate is contiguous.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

Points = Float[Tensor, "3 rays"]
Scalars = Float[Tensor, " rays"]

CUBE_HALF = 0.80
CYLINDER_RADIUS, CYLINDER_HALF = 0.66, 0.98
CONE_RADIUS, CONE_HALF = 1.0, 1.05
TORUS_RING, TORUS_TUBE = 0.80, 0.30
# Steps of sphere tracing for every ray, and for those that are still under way after them.
TORUS_STEPS, TORUS_MORE_STEPS, TORUS_TOLERANCE = 14, 60, 1e-3


@dataclass(frozen=True)
class Solid:
    """A unit solid.

    Attributes:
        intersect: (origin, direction) -> distance in units of the direction's length, infinite for a miss.
        normal: point on the surface -> outward normal, not normalised.
        half_height: from the centre to the ground when it stands.
        bound: radius of the enclosing ball.
    """

    intersect: Callable[[Points, Points], Scalars]
    normal: Callable[[Points], Points]
    half_height: float
    bound: float


def _where_hit(hit: Tensor, distance: Scalars) -> Scalars:
    return torch.where(hit & (distance > 0), distance, torch.inf)


def dot(a: Points, b: Points) -> Scalars:
    """Inner products, unrolled: torch reduces a leading axis of three slowly."""
    return a[0] * b[0] + a[1] * b[1] + a[2] * b[2]


def _sphere(origin: Points, direction: Points) -> Scalars:
    a, b, c = dot(direction, direction), dot(origin, direction), dot(origin, origin) - 1
    discriminant = b * b - a * c
    return _where_hit(discriminant > 0, (-b - discriminant.clamp(min=0).sqrt()) / a)


def _cube(origin: Points, direction: Points) -> Scalars:
    safe = torch.where(direction.abs() < 1e-9, 1e-9, direction)
    center, reach = -origin / safe, CUBE_HALF / safe.abs()
    enter, leave = (center - reach).amax(0), (center + reach).amin(0)
    return _where_hit(enter < leave, enter)


def _cube_normal(point: Points) -> Points:
    return torch.where(point.abs() >= point.abs().amax(0), point.sign(), 0.0)


def _disc(origin: Points, direction: Points, height: float, radius: float) -> Scalars:
    distance = (height - origin[2]) / torch.where(direction[2].abs() < 1e-9, 1e-9, direction[2])
    x, y = origin[0] + distance * direction[0], origin[1] + distance * direction[1]
    return _where_hit(x * x + y * y < radius * radius, distance)


def _cylinder(origin: Points, direction: Points) -> Scalars:
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    a, b, c = dx * dx + dy * dy, ox * dx + oy * dy, ox * ox + oy * oy - CYLINDER_RADIUS**2
    discriminant = b * b - a * c
    side = (-b - discriminant.clamp(min=0).sqrt()) / a.clamp(min=1e-12)
    side = _where_hit((discriminant > 0) & ((oz + side * dz).abs() < CYLINDER_HALF), side)
    top = _disc(origin, direction, CYLINDER_HALF, CYLINDER_RADIUS)
    bottom = _disc(origin, direction, -CYLINDER_HALF, CYLINDER_RADIUS)
    return torch.minimum(side, torch.minimum(top, bottom))


def _cylinder_normal(point: Points) -> Points:
    x, y, z = point
    cap = z.abs() > CYLINDER_HALF - 1e-3
    return torch.stack([torch.where(cap, 0.0, x), torch.where(cap, 0.0, y), torch.where(cap, z.sign(), 0.0)])


def _cone(origin: Points, direction: Points) -> Scalars:
    slope = (CONE_RADIUS / (2 * CONE_HALF)) ** 2
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    oz = oz - CONE_HALF  # heights from the apex
    a = dx * dx + dy * dy - slope * dz * dz
    b = ox * dx + oy * dy - slope * oz * dz
    c = ox * ox + oy * oy - slope * oz * oz
    a = torch.where(a.abs() < 1e-9, 1e-9, a)
    discriminant = b * b - a * c
    root = discriminant.clamp(min=0).sqrt()
    best = _disc(origin, direction, -CONE_HALF, CONE_RADIUS)
    for distance in ((-b - root) / a, (-b + root) / a):
        height = oz + distance * dz
        on_cone = (discriminant > 0) & (height < 0) & (height > -2 * CONE_HALF)
        best = torch.minimum(best, _where_hit(on_cone, distance))
    return best


def _cone_normal(point: Points) -> Points:
    x, y, z = point
    base = z < -CONE_HALF + 1e-3
    rise = CONE_RADIUS / (2 * CONE_HALF) * (x * x + y * y).sqrt()
    return torch.stack([torch.where(base, 0.0, x), torch.where(base, 0.0, y), torch.where(base, -1.0, rise)])


def _torus(origin: Points, direction: Points) -> Scalars:
    length = dot(direction, direction).sqrt()
    direction = direction / length
    nearest = -dot(origin, direction)
    half_chord = (nearest**2 - dot(origin, origin) + (TORUS_RING + TORUS_TUBE) ** 2).clamp(min=0).sqrt()
    distance, gap = _march(origin, direction, (nearest - half_chord).clamp(min=1e-3), TORUS_STEPS)
    # Only rays that graze the tube are not done by now.
    slow = ((gap > TORUS_TOLERANCE) & (distance < nearest + half_chord)).nonzero().squeeze(1)
    distance[slow], gap[slow] = _march(origin[:, slow], direction[:, slow], distance[slow], TORUS_MORE_STEPS)
    return _where_hit(gap < TORUS_TOLERANCE, distance / length)


def _march(origin: Points, direction: Points, distance: Scalars, steps: int) -> tuple[Scalars, Scalars]:
    """Sphere tracing: each step goes as far as the torus is away."""
    (ox, oy, oz), (dx, dy, dz) = origin, direction
    gap = torch.full_like(distance, torch.inf)
    for _ in range(steps):
        x, y, z = ox + distance * dx, oy + distance * dy, oz + distance * dz
        gap = torch.hypot(torch.hypot(x, y) - TORUS_RING, z) - TORUS_TUBE
        distance = distance + gap
    return distance, gap


def _torus_normal(point: Points) -> Points:
    x, y, z = point
    inward = 1 - TORUS_RING / torch.hypot(x, y).clamp(min=1e-6)
    return torch.stack([x * inward, y * inward, z])


SOLIDS: dict[str, Solid] = {
    "sphere": Solid(_sphere, lambda point: point, 1.0, 1.0),
    "cube": Solid(_cube, _cube_normal, CUBE_HALF, CUBE_HALF * 3**0.5),
    "cylinder": Solid(_cylinder, _cylinder_normal, CYLINDER_HALF, (CYLINDER_RADIUS**2 + CYLINDER_HALF**2) ** 0.5),
    "cone": Solid(_cone, _cone_normal, CONE_HALF, (CONE_RADIUS**2 + CONE_HALF**2) ** 0.5),
    "torus": Solid(_torus, _torus_normal, TORUS_TUBE, TORUS_RING + TORUS_TUBE),
}
