"""The facts of a clip: everything that its pixels and its caption are made from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ObjectFacts:
    """One coloured solid.

    Attributes:
        radius: world units; the solid is its unit form times this.
        motion: one of ``MOTIONS``, or of ``COLLISION``.
        heading: unit vector on the ground along which a straight motion (or "behind", or a collision) leads.
        center: (x, y) of the middle of a straight path, of the circle of "orbit", of the place otherwise; where it is
            when it collides.
        travel: length of a straight path; radius of the circle of "orbit"; height of "bounce" and "fall"; of "strike"
            and "struck" how far it would come in the clip's duration at its speed before and after the collision.
        yaw: rotation about the vertical at time 0, degrees.
        phase: where a periodic motion starts, as a fraction of its period.
        rebound: velocity after a collision, of "strike", as a share of the one before; less than 0 where it turns back.
    """

    color: str
    shape: str
    size: str
    radius: float
    motion: str
    heading: tuple[float, float]
    center: tuple[float, float]
    travel: float
    yaw: float
    phase: float
    rebound: float = 0.0


@dataclass(frozen=True)
class OccluderFacts:
    """A grey wall: a box on the ground with half extents along x, y, z."""

    center: tuple[float, float]
    half: tuple[float, float, float]


@dataclass(frozen=True)
class CameraFacts:
    """The camera's motion and its pose in the middle of that motion (angles in degrees)."""

    motion: str
    pitch: float
    fov: float
    distance: float
    target: tuple[float, float, float]


@dataclass(frozen=True)
class SceneFacts:
    """Ground and light: the checker's cell, its shift and turn, tone and contrast, the light's azimuth."""

    cell: float
    shift: tuple[float, float]
    turn: float
    tone: float
    contrast: float
    light: float


@dataclass(frozen=True)
class Facts:
    """Everything about one clip."""

    index: int
    duration: float
    objects: tuple[ObjectFacts, ...]
    occluder: OccluderFacts | None
    camera: CameraFacts
    scene: SceneFacts

    def as_dict(self) -> dict[str, Any]:
        """The same as nested dictionaries, lists, strings and numbers."""
        return _plain(asdict(self))

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> Facts:
        """The facts that ``as_dict`` told; further keys are ignored."""
        objects = tuple(ObjectFacts(**_tuples(thing)) for thing in told["objects"])
        wall = None if told["occluder"] is None else OccluderFacts(**_tuples(told["occluder"]))
        camera, scene = CameraFacts(**_tuples(told["camera"])), SceneFacts(**_tuples(told["scene"]))
        return cls(told["index"], told["duration"], objects, wall, camera, scene)


def _tuples(told: Mapping[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in told.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple | list) else value
