"""Draws the facts of a clip from (configuration, seed, split, index)."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import torch

from lightning_sora.errors import SoraError
from lightning_sora.randomness import stream_seed
from lightning_sora.world.config import COLLIDE, DIRECTIONS, SIZES, WorldConfig
from lightning_sora.world.facts import CameraFacts, Facts, ObjectFacts, OccluderFacts, SceneFacts
from lightning_sora.world.motion import camera_path, collision, positions
from lightning_sora.world.shapes import CUBE_HALF, SOLIDS

# Everything stays this far apart, edge to edge of the upright bounding cylinders.
CLEARANCE = 0.1
ATTEMPTS = 24
IN_FRAME_SHARE = 0.7  # of the moments at which an object's centre must be in the frame


def draw_facts(config: WorldConfig, seed: int, split: str, index: int) -> Facts:
    """The facts of clip ``index``: a pure function of its arguments.

    Raises:
        SoraError: negative index, or unknown split.
    """
    if index < 0:
        raise SoraError(f"clip index {index} must be at least 0")
    pairs = config.split_pairs(split)
    rng = random.Random(stream_seed(seed, "world", split, index))
    count = rng.randint(*config.objects)
    chosen: list[tuple[str, str]] = []
    for _ in range(count):
        taken = {color for color, _ in chosen}
        chosen.append(rng.choice([pair for pair in pairs if pair[0] not in taken]))
    camera = _draw_camera(rng, config)
    scene = _draw_scene(rng, config)
    for _ in range(ATTEMPTS):
        placed = _place(rng, config, chosen, camera)
        if placed is not None:
            return Facts(index, config.duration, *placed, camera, scene)
    raise SoraError(
        f"no room for {count} objects on a stage with spread={config.spread} (clip {index}); "
        "raise the world's spread and stage, or lower objects"
    )


def _place(
    rng: random.Random, config: WorldConfig, chosen: list[tuple[str, str]], camera: CameraFacts
) -> tuple[tuple[ObjectFacts, ...], OccluderFacts | None] | None:
    """Puts objects on the stage one by one; None if one finds no place."""
    crowded = config.objects[1] > 1
    objects: list[ObjectFacts] = []
    wall: OccluderFacts | None = None
    if COLLIDE in config.motions and len(chosen) > 1 and rng.random() * len(config.motions) < 1:
        for _ in range(ATTEMPTS):
            pair = _draw_pair(rng, config, chosen)
            if all(_fits(thing, [], None, camera, config.duration) for thing in pair):
                break
        else:
            return None
        objects, chosen = list(pair), chosen[2:]
    for color, shape in chosen:
        # One wall, one object behind it.
        motions = [m for m in config.motions if m != COLLIDE and (m != "behind" or wall is None)]
        for _ in range(ATTEMPTS):
            thing = _draw_object(rng, config, color, shape, motions)
            own_wall = _wall_before(thing) if thing.motion == "behind" else wall
            if not crowded or _fits(thing, objects, own_wall, camera, config.duration):
                break
        else:
            return None
        objects.append(thing)
        wall = own_wall
    if wall is None and rng.random() < config.occluder:
        for _ in range(ATTEMPTS):
            candidate = _draw_wall(rng, config)
            if not any(_touches(thing, candidate, config.duration) for thing in objects):
                return tuple(objects), candidate
    return tuple(objects), wall


def _draw_camera(rng: random.Random, config: WorldConfig) -> CameraFacts:
    distance = config.stage / 2 / math.tan(math.radians(config.fov / 2))
    return CameraFacts(rng.choice(config.cameras), rng.uniform(*config.pitch), config.fov, distance, (0.0, 0.0, 0.6))


def _draw_scene(rng: random.Random, config: WorldConfig) -> SceneFacts:
    if not config.vary_scene:
        return SceneFacts(1.25, (0.3, 0.4), 20.0, 0.62, config.contrast, -40.0)
    return SceneFacts(
        cell=rng.uniform(0.9, 1.8),
        shift=(rng.uniform(0, 9), rng.uniform(0, 9)),
        turn=rng.uniform(0, 90),
        tone=rng.uniform(0.5, 0.7),
        contrast=config.contrast * rng.uniform(0.7, 1.3),
        light=rng.uniform(-70, 70),
    )


def _draw_object(rng: random.Random, config: WorldConfig, color: str, shape: str, motions: list[str]) -> ObjectFacts:
    # A spinning sphere would look still.
    motion = rng.choice([m for m in motions if not (m == "spin" and shape == "sphere")] or ["still"])
    size = rng.choice(config.sizes)
    radius = SIZES[size]
    heading = DIRECTIONS.get(motion, rng.choice([(1.0, 0.0), (-1.0, 0.0)]))
    center = (rng.uniform(-config.spread, config.spread), rng.uniform(-config.spread, config.spread))
    travel = {
        "bounce": 1.3 * radius,
        "fall": 0.33 * config.stage,
        "orbit": 0.22 * config.stage,
        "behind": 4.0 * radius,
    }.get(motion, config.travel)
    return ObjectFacts(
        color, shape, size, radius, motion, heading, center, travel, rng.uniform(*config.yaw), rng.random()
    )


def _draw_pair(
    rng: random.Random, config: WorldConfig, chosen: list[tuple[str, str]]
) -> tuple[ObjectFacts, ObjectFacts]:
    """Two that collide head on: one comes from the side, the other rests until then."""
    one, other = (_draw_object(rng, config, *pair, ["still"]) for pair in chosen[:2])
    left, pushed = collision(one.radius, other.radius)
    apart = footprint(one) + footprint(other)
    x, y = one.center
    return (
        replace(one, motion="strike", rebound=left),
        replace(
            other,
            motion="struck",
            heading=one.heading,
            center=(x + apart * one.heading[0], y + apart * one.heading[1]),
            travel=pushed * one.travel,
        ),
    )


def _wall_before(thing: ObjectFacts) -> OccluderFacts:
    """A wall close in front of the path: it hides the object in the middle, and not at the ends."""
    half = (0.85 * thing.radius, 0.18, 1.25 * thing.radius)
    return OccluderFacts((thing.center[0], thing.center[1] - 1.35 * thing.radius - half[1]), half)


def _draw_wall(rng: random.Random, config: WorldConfig) -> OccluderFacts:
    half = (rng.uniform(0.5, 1.1), rng.uniform(0.15, 0.3), rng.uniform(0.6, 1.2))
    center = (rng.uniform(-0.8, 0.8) * config.spread, rng.uniform(-1.0, 0.4) * config.spread)
    return OccluderFacts(center, half)


def _moments(duration: float) -> list[float]:
    return [duration * step / 6 for step in range(7)]


def _fits(
    thing: ObjectFacts,
    others: list[ObjectFacts],
    wall: OccluderFacts | None,
    camera: CameraFacts,
    duration: float,
) -> bool:
    """Whether the object meets nothing and its centre is in the middle square of the frame most of the time."""
    times = torch.tensor(_moments(duration))
    path = positions(thing, times, duration)
    spot, depth = camera_path(camera, times, duration).project(path, 2, 2)
    inside = ((spot - 1).abs().amax(-1) < 0.9) & (depth > 0)
    if inside.float().mean() < IN_FRAME_SHARE:
        return False
    for other in others:
        gap = (path - positions(other, times, duration))[:, :2].norm(dim=-1).min()
        if gap < footprint(thing) + footprint(other) + CLEARANCE:
            return False
    return wall is None or not any(_touches(one, wall, duration) for one in (*others, thing))


def _touches(thing: ObjectFacts, wall: OccluderFacts, duration: float) -> bool:
    path = positions(thing, _moments(duration), duration)[:, :2]
    outside = ((path - torch.tensor(wall.center)).abs() - torch.tensor(wall.half[:2])).clamp(min=0)
    return bool((outside.norm(dim=-1) < footprint(thing) + CLEARANCE).any())


def footprint(thing: ObjectFacts) -> float:
    """Radius of the upright cylinder that holds the object at any yaw."""
    unit = CUBE_HALF * 2**0.5 if thing.shape == "cube" else min(SOLIDS[thing.shape].bound, 1.1)
    return thing.radius * (SOLIDS[thing.shape].bound if thing.motion == "spin" else unit)
