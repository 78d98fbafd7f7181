"""What a world may contain: its vocabulary, and five levels of difficulty.

The ground is the plane z = 0; x points right, y away from the viewer, z up. Lengths are in world
units, angles in degrees, times in seconds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_sora.errors import SoraError

# Saturated and well apart in hue; everything else in a world is neutral grey.
COLORS: dict[str, tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.15, 0.75, 0.15),
    "blue": (0.16, 0.26, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.65, 0.15, 0.90),
    "cyan": (0.10, 0.80, 0.88),
    "orange": (0.98, 0.50, 0.06),
    "pink": (0.98, 0.35, 0.65),
}

SHAPES: tuple[str, ...] = ("sphere", "cube", "cylinder", "cone", "torus")

# Radius of a sphere of that size; the other shapes are drawn to look about as large.
SIZES: dict[str, float] = {"small": 0.72, "medium": 0.88, "big": 1.05}

_DIAGONAL = math.sqrt(0.5)
# Unit headings on the ground, as the viewer sees them.
DIRECTIONS: dict[str, tuple[float, float]] = {
    "right": (1.0, 0.0),
    "away_right": (_DIAGONAL, _DIAGONAL),
    "away": (0.0, 1.0),
    "away_left": (-_DIAGONAL, _DIAGONAL),
    "left": (-1.0, 0.0),
    "toward_left": (-_DIAGONAL, -_DIAGONAL),
    "toward": (0.0, -1.0),
    "toward_right": (_DIAGONAL, -_DIAGONAL),
}

MOTIONS: tuple[str, ...] = (*DIRECTIONS, "still", "bounce", "spin", "orbit", "fall", "behind")
COLLIDE = "collide"
"""Drawn for a clip, not for one object: the first two have the motions of ``COLLISION``."""
COLLISION: tuple[str, ...] = ("strike", "struck")

CAMERAS: tuple[str, ...] = (
    "static",
    "pan_left",
    "pan_right",
    "tilt_up",
    "tilt_down",
    "dolly_in",
    "dolly_out",
    "zoom_in",
    "zoom_out",
    "orbit_left",
    "orbit_right",
)


@dataclass(frozen=True)
class WorldConfig:
    """The family of clips of one world.

    Attributes:
        colors, shapes, sizes, motions, cameras: names to draw from. Among motions may be "collide", which takes two
            objects and which the world's evaluator does not read.
        objects: least and greatest number of coloured objects.
        occluder: probability that a grey wall stands on the stage (the motion "behind" brings its own).
        holdout: how many (colour, shape) pairs never occur in the split "train".
        duration: seconds that a directed motion of an object or of the camera takes; it rests
            afterwards. Periodic motions (bounce, spin, orbit) go on.
        travel: how far a straight motion leads, in world units.
        stage: world units that the shorter side of the frame spans at the centre of the scene.
        spread: how far from the centre objects are placed at random, in world units.
        pitch: least and greatest angle at which the camera looks down.
        fov: angle of view over the shorter side of the frame.
        yaw: least and greatest rotation of an object about the vertical.
        contrast: of the ground's pattern, 0 to 1.
        vary_scene: draw ground and light anew for every clip, rather than keeping them fixed.
    """

    colors: tuple[str, ...] = tuple(COLORS)[:6]
    shapes: tuple[str, ...] = SHAPES
    sizes: tuple[str, ...] = ("small", "big")
    motions: tuple[str, ...] = tuple(DIRECTIONS)
    cameras: tuple[str, ...] = ("static",)
    objects: tuple[int, int] = (1, 1)
    occluder: float = 0.0
    holdout: int = 5
    duration: float = 2.0
    travel: float = 2.3
    stage: float = 5.0
    spread: float = 0.1
    pitch: tuple[float, float] = (50.0, 50.0)
    fov: float = 24.0
    yaw: tuple[float, float] = (28.0, 28.0)
    contrast: float = 0.08
    vary_scene: bool = False

    def __post_init__(self) -> None:
        for field, known in (
            ("colors", COLORS),
            ("shapes", SHAPES),
            ("sizes", SIZES),
            ("motions", (*MOTIONS, COLLIDE)),
            ("cameras", CAMERAS),
        ):
            names = tuple(getattr(self, field))
            object.__setattr__(self, field, names)  # recipes give lists; a configuration is hashable
            unknown = [name for name in names if name not in known]
            if unknown or not names or len(set(names)) != len(names):
                raise SoraError(
                    f"world {field}={names!r} must be distinct names of: {', '.join(known)}; "
                    f"{'remove ' + ', '.join(map(repr, unknown)) if unknown else 'name each once, at least one'}"
                )
        for field in ("objects", "pitch", "yaw"):
            object.__setattr__(self, field, tuple(getattr(self, field)))
        least, greatest = self.objects
        if not 1 <= least <= greatest <= min(4, len(self.colors)):
            raise SoraError(
                f"world objects={self.objects!r} must be (least, greatest) with 1 <= least <= greatest <= "
                f"{min(4, len(self.colors))} (every object has its own colour); lower it or add colours"
            )
        if not 0 <= self.holdout <= min(len(self.colors), len(self.colors) * len(self.shapes) - greatest):
            raise SoraError(
                f"world holdout={self.holdout} must leave pairs to train on and be at most the number of "
                f"colours, {len(self.colors)}; lower it"
            )
        if COLLIDE in self.motions and greatest < 2:
            raise SoraError(
                f"world objects={self.objects!r}: 'collide' takes two objects; raise objects, or take it out of motions"
            )
        if set(self.motions) == {COLLIDE} and self.objects != (2, 2):
            raise SoraError(
                f"world objects={self.objects!r}: 'collide' alone leaves clips of other than two objects without a "
                "motion; set objects=(2, 2), or add motions"
            )
        if set(self.motions) == {"spin"} and set(self.shapes) == {"sphere"}:
            raise SoraError("a spinning sphere looks still; add a shape or a motion to the world")
        for field in ("duration", "travel", "stage", "fov"):
            if getattr(self, field) <= 0:
                raise SoraError(f"world {field}={getattr(self, field)} must be positive; raise it")

    @property
    def pairs(self) -> tuple[tuple[str, str], ...]:
        """Every (colour, shape), colours slowest."""
        return tuple((color, shape) for color in self.colors for shape in self.shapes)

    @property
    def heldout_pairs(self) -> tuple[tuple[str, str], ...]:
        """The (colour, shape) pairs kept out of "train": every colour at most once, shapes spread evenly."""
        return tuple((self.colors[i], self.shapes[(2 * i + 1) % len(self.shapes)]) for i in range(self.holdout))

    def split_pairs(self, split: str) -> tuple[tuple[str, str], ...]:
        """The (colour, shape) pairs of "train", "heldout" or "all".

        Raises:
            SoraError: unknown split, or no pair is held out.
        """
        held = self.heldout_pairs
        chosen = {
            "all": self.pairs,
            "train": tuple(pair for pair in self.pairs if pair not in held),
            "heldout": held,
        }
        if split not in chosen:
            raise SoraError(f"unknown world split {split!r}; choose one of: {', '.join(chosen)}")
        if len({color for color, _ in chosen[split]}) < self.objects[1]:
            raise SoraError(
                f"the world split {split!r} has {len(chosen[split])} (colour, shape) pairs, too few for "
                f"{self.objects[1]} objects of different colours; set holdout accordingly or use split 'all'"
            )
        return chosen[split]


LEVELS: dict[str, WorldConfig] = {
    "tiny": WorldConfig(),
    "duo": WorldConfig(
        objects=(2, 2),
        cameras=("static", "pan_left", "pan_right", "dolly_in", "dolly_out"),
        stage=7.0,
        spread=1.9,
        pitch=(42.0, 42.0),
        fov=30.0,
        contrast=0.15,
    ),
    "simple": WorldConfig(
        motions=MOTIONS,
        cameras=CAMERAS,
        stage=6.0,
        spread=0.4,
        pitch=(36.0, 36.0),
        fov=30.0,
        yaw=(0.0, 90.0),
        contrast=0.22,
        vary_scene=True,
    ),
    "medium": WorldConfig(
        colors=tuple(COLORS),
        sizes=tuple(SIZES),
        motions=MOTIONS,
        objects=(1, 3),
        cameras=("static", "pan_left", "pan_right", "dolly_in", "dolly_out"),
        occluder=0.25,
        travel=2.6,
        stage=8.0,
        spread=2.6,
        pitch=(28.0, 38.0),
        fov=34.0,
        yaw=(0.0, 90.0),
        contrast=0.25,
        vary_scene=True,
    ),
    "hard": WorldConfig(
        colors=tuple(COLORS),
        sizes=tuple(SIZES),
        motions=MOTIONS,
        objects=(2, 4),
        cameras=CAMERAS[1:],
        occluder=0.5,
        travel=3.0,
        stage=9.0,
        spread=3.2,
        pitch=(22.0, 38.0),
        fov=38.0,
        yaw=(0.0, 90.0),
        contrast=0.3,
        vary_scene=True,
    ),
}


def world_config(config: WorldConfig | str) -> WorldConfig:
    """A level by name, or the configuration itself.

    Raises:
        SoraError: unknown level.
    """
    if isinstance(config, WorldConfig):
        return config
    if config not in LEVELS:
        raise SoraError(f"unknown world level {config!r}; choose one of: {', '.join(LEVELS)}, or pass a WorldConfig")
    return LEVELS[config]
