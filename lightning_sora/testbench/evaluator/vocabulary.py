"""What the world evaluator reads, and the true answers for a clip whose facts are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.world import CAMERAS, COLORS, MOTIONS, SHAPES, SIZES, Facts
from lightning_sora.world.motion import camera_path, positions

VOCABULARY: dict[str, tuple[str, ...]] = {
    "color": tuple(COLORS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "motion": MOTIONS,
    "camera": CAMERAS,
}
OF_OBJECTS = ("shape", "size", "motion")
"""Facts that each object has; its colour is how it is found, since no two objects of a clip share one."""

SECONDS = 2.0  # of a clip that the evaluator sees
FPS = 8.0
FRAMES = 17
MIN_FRAMES = 9
SIDE = 64  # pixels


@dataclass(frozen=True)
class Answers:
    """What is true of a batch.

    Attributes:
        present: whether a clip shows an object of a colour.
        slots: (clip, colour) of every object.
        labels: per object the code of its shape, size and motion; per clip that of the camera's motion.
        places: centres of the objects in world units over the clip's stage.
        depths: log of the distance along the optical axis over the stage.
    """

    present: Bool[Tensor, "clips colors"]
    slots: Int[Tensor, "objects 2"]
    labels: dict[str, Int[Tensor, " items"]]
    places: Float[Tensor, "objects frames 3"]
    depths: Float[Tensor, "objects frames"]


def answers(facts: Sequence[Mapping[str, Any]], frames: int, fps: float) -> Answers:
    """The truth about clips, from ``Facts.as_dict()`` with the world's configuration under "config"."""
    times = torch.arange(frames) / fps
    present = torch.zeros((len(facts), len(VOCABULARY["color"])), dtype=torch.bool)
    slots, places, depths = [], [], []
    labels: dict[str, list[int]] = {name: [] for name in (*OF_OBJECTS, "camera")}
    for clip, fact in enumerate(facts):
        stage = fact["config"]["stage"]
        told = Facts.from_dict(fact)
        camera = camera_path(told.camera, times, told.duration)
        labels["camera"].append(code("camera", told.camera.motion))
        for thing in told.objects:
            color = code("color", thing.color)
            present[clip, color] = True
            slots.append((clip, color))
            for name in OF_OBJECTS:
                labels[name].append(code(name, getattr(thing, name)))
            path = positions(thing, times, told.duration)
            _, depth = camera.project(path, 2, 2)
            places.append(path / stage)
            depths.append((depth.clamp(min=0.1) / stage).log())
    return Answers(
        present,
        torch.tensor(slots),
        {name: torch.tensor(values) for name, values in labels.items()},
        torch.stack(places),
        torch.stack(depths),
    )


def code(fact: str, value: str) -> int:
    """The number of a value among those of a fact.

    Raises:
        SoraError: the evaluator does not read it.
    """
    if value not in VOCABULARY[fact]:
        raise SoraError(f"the evaluator reads no {fact} {value!r}; it reads {', '.join(VOCABULARY[fact])}")
    return VOCABULARY[fact].index(value)


def mirrored_codes(fact: str) -> Int[Tensor, " values"]:
    """What each value becomes when left and right change places."""
    return torch.tensor([code(fact, mirrored_words(value)) for value in VOCABULARY[fact]])


def mirrored_words(text: str) -> str:
    """A caption, or the name of a motion, of the clip seen in a mirror."""
    return text.replace("left", "\0").replace("right", "left").replace("\0", "right")
