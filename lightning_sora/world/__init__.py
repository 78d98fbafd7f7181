"""Procedural captioned videos with known facts, and their measurement from pixels."""

from lightning_sora.world.config import (
    CAMERAS,
    COLLISION,
    COLORS,
    DIRECTIONS,
    LEVELS,
    MOTIONS,
    SHAPES,
    SIZES,
    WorldConfig,
)
from lightning_sora.world.facts import Facts
from lightning_sora.world.measure import Measurement, measure
from lightning_sora.world.render import Rendering
from lightning_sora.world.trajectory import Trajectory
from lightning_sora.world.world import World

__all__ = [
    "CAMERAS",
    "COLLISION",
    "COLORS",
    "DIRECTIONS",
    "LEVELS",
    "MOTIONS",
    "SHAPES",
    "SIZES",
    "Facts",
    "Measurement",
    "Rendering",
    "Trajectory",
    "World",
    "WorldConfig",
    "measure",
]
