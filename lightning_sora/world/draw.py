"""Draws the facts of a clip from (configuration, seed, split, index)."""

from __future__ import annotations

import math
import random

from lightning_sora.errors import SoraError
from lightning_sora.randomness import stream_seed
from lightning_sora.world.config import DIRECTIONS, SIZES, WorldConfig
from lightning_sora.world.facts import CameraFacts, Facts, ObjectFacts, OccluderFacts, SceneFacts
from lightning_sora.world.motion import positions
from lightning_sora.world.shapes import CUBE_HALF, SOLIDS

# Everything stays this far apart, edge to edge of the upright bounding cylinders.
CLEARANCE = 0.1
ATTEMPTS = 200


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
    for attempt in range(ATTEMPTS):
        # A crowded stage is thinned out rather than refused: late attempts place everything at rest.
        motions = config.motions if attempt < ATTEMPTS // 2 or "still" not in config.motions else ("still",)
        objects = tuple(_draw_object(rng, config, color, shape, motions) for color, shape in chosen)
        occluder = _draw_occluder(rng, config, objects)
        if count == 1 or not _collide(objects, occluder, config.duration):
            return Facts(index, config.duration, objects, occluder, camera, scene)
    raise SoraError(
        f"no room for {count} objects on a stage with spread={config.spread} (clip {index}); "
        "raise the world's spread and stage, or lower objects"
    )


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


def _draw_object(
    rng: random.Random, config: WorldConfig, color: str, shape: str, motions: tuple[str, ...]
) -> ObjectFacts:
    # A spinning sphere would look still.
    motion = rng.choice([m for m in motions if not (m == "spin" and shape == "sphere")] or ["still"])
    size = rng.choice(config.sizes)
    radius = SIZES[size]
    heading = DIRECTIONS.get(motion, rng.choice([(1.0, 0.0), (-1.0, 0.0)]))
    center = (rng.uniform(-config.spread, config.spread), rng.uniform(-config.spread, config.spread))
    travel = {
        "bounce": 1.3 * radius,
        "fall": 0.4 * config.stage,
        "orbit": 0.22 * config.stage,
        "behind": 1.15 * config.travel,
    }.get(motion, config.travel)
    return ObjectFacts(
        color, shape, size, radius, motion, heading, center, travel, rng.uniform(*config.yaw), rng.random()
    )


def _draw_occluder(rng: random.Random, config: WorldConfig, objects: tuple[ObjectFacts, ...]) -> OccluderFacts | None:
    hidden = [thing for thing in objects if thing.motion == "behind"]
    wanted = rng.random() < config.occluder
    if hidden:
        thing = hidden[0]
        # Wide enough to hide the object for a while, near enough in front of its path to do so.
        half = (1.05 * thing.radius, 0.18, 1.25 * thing.radius)
        return OccluderFacts((thing.center[0], thing.center[1] - 1.35 * thing.radius - half[1]), half)
    if not wanted:
        return None
    half = (rng.uniform(0.5, 1.1), rng.uniform(0.15, 0.3), rng.uniform(0.6, 1.2))
    return OccluderFacts((rng.uniform(-0.5, 0.5) * config.spread, rng.uniform(-0.9, 0.2) * config.spread), half)


def _collide(objects: tuple[ObjectFacts, ...], occluder: OccluderFacts | None, duration: float) -> bool:
    times = [duration * step / 8 for step in range(9)]
    paths = [positions(thing, times, duration) for thing in objects]
    for first, thing in enumerate(objects):
        reach = footprint(thing)
        for second in range(first):
            gap = (paths[first] - paths[second])[:, :2].norm(dim=-1).min()
            if gap < reach + footprint(objects[second]) + CLEARANCE:
                return True
        if occluder is not None:
            x, y = (paths[first][:, axis] - occluder.center[axis] for axis in (0, 1))
            outside_x = (x.abs() - occluder.half[0]).clamp(min=0)
            outside_y = (y.abs() - occluder.half[1]).clamp(min=0)
            if (outside_x.hypot(outside_y) < reach + CLEARANCE).any():
                return True
    return False


def footprint(thing: ObjectFacts) -> float:
    """Radius of the upright cylinder that holds the object at any yaw."""
    unit = CUBE_HALF * 2**0.5 if thing.shape == "cube" else min(SOLIDS[thing.shape].bound, 1.1)
    return thing.radius * (SOLIDS[thing.shape].bound if thing.motion == "spin" else unit)
