"""What a caption of the world says, read back from its words.

The inverse of :mod:`lightning_sora.world.captions`, for captions that a network wrote: it looks for the words of that
vocabulary alone, and what it does not find is not told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_sora.world.captions import CAMERA_MOTIONS, DENSE_MOTIONS, SHORT_MOTIONS, SIZE_WORDS, caption
from lightning_sora.world.config import CAMERAS, COLLISION, COLORS, MOTIONS, SHAPES
from lightning_sora.world.facts import Facts

FACTS = ("color", "shape", "size", "motion", "camera", "count")
WAYS = ("left", "right")


@dataclass(frozen=True)
class ToldObject:
    """What is said of one object; None for what is not."""

    color: str | None
    shape: str | None
    size: str | None
    motion: str | None


@dataclass(frozen=True)
class Told:
    """What a caption says.

    Attributes:
        camera: None where nothing is said, as of a camera at rest in short captions.
    """

    objects: tuple[ToldObject, ...]
    camera: str | None


def _phrases() -> dict[str, str]:
    found: dict[str, str] = {}
    for table in (SHORT_MOTIONS, DENSE_MOTIONS):
        for motion, wordings in table.items():
            for wording in wordings:
                found |= {wording.format(way=way): motion for way in WAYS}
    found |= {f", {motion.replace('_', ' ')}": motion for motion in (*MOTIONS, *COLLISION)}  # tags
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


PHRASES = _phrases()
VIEWS = {phrase: motion for motion, wordings in CAMERA_MOTIONS.items() for phrase in wordings}
VIEWS |= {f"camera {motion.replace('_', ' ')}": motion for motion in CAMERAS}
VIEWS = dict(sorted(VIEWS.items(), key=lambda item: -len(item[0])))
SIZE_OF = {word: size for size, words in SIZE_WORDS.items() for word in (*words, size)}
NAMELESS = "thing"  # an object whose shape is not told
_SHAPE = re.compile(rf"\b({'|'.join((*SHAPES, NAMELESS))})s?\b")
_COLOR = re.compile(rf"\b({'|'.join(COLORS)})\b")
_SIZE = re.compile(rf"(?<![\w-])({'|'.join(sorted(SIZE_OF, key=len, reverse=True))})(?![\w-])")


def read_caption(text: str) -> Told:
    """The facts that a caption of any style tells, object by object in its order."""
    text = text.lower()
    camera = next((motion for phrase, motion in VIEWS.items() if phrase in text), None)
    shapes = list(_SHAPE.finditer(text))
    objects = []
    for place, match in enumerate(shapes):
        before = text[shapes[place - 1].end() if place else 0 : match.start()]
        after = text[match.end() : shapes[place + 1].start() if place + 1 < len(shapes) else len(text)]
        # Of the object before, only its motion stands between; and the camera's is not an object's.
        after = re.split(r"camera|\bview zooms", after)[0]
        colors, sizes = _COLOR.findall(before), _SIZE.findall(before)
        motion = next((PHRASES[phrase] for phrase in PHRASES if phrase in after), None)
        shape = None if match[1] == NAMELESS else match[1]
        size = SIZE_OF[sizes[-1]] if sizes else None
        objects.append(ToldObject(colors[-1] if colors else None, shape, size, motion))
    return Told(tuple(objects), camera)


def tell(facts: Mapping[str, Any], style: str) -> str:
    """The world's own caption of a clip; its wording varies with the clip."""
    true = Facts.from_dict(facts)
    return caption(true, style, key=true.index)


def kept(prompt: str, expanded: str) -> bool:
    """Whether an expanded prompt tells everything that the prompt tells, of each object and of the camera."""
    short, rich = read_caption(prompt), read_caption(expanded)
    left = list(rich.objects)
    for thing in short.objects:
        told = {name: value for name, value in vars(thing).items() if value is not None}
        match = next((one for one in left if all(getattr(one, n) == v for n, v in told.items())), None)
        if match is None:
            return False
        left.remove(match)
    return short.camera in (None, rich.camera)


def is_rich(text: str) -> bool:
    """Whether a text tells every fact of each of its objects, and the camera."""
    told = read_caption(text)
    whole = all(None not in vars(thing).values() for thing in told.objects)
    return bool(told.objects) and whole and told.camera is not None


def recovered(text: str, facts: Mapping[str, Any]) -> dict[str, float]:
    """The share of a clip's facts that a caption tells rightly, in [0, 1], by name, and ``all``.

    Objects are met by colour, or else in order; an object that is not told loses its facts, one that is told
    without being there loses the count. A camera at rest may go unsaid.
    """
    told = read_caption(text)
    true: Sequence[Mapping[str, Any]] = facts["objects"]
    left = list(told.objects)
    right = dict.fromkeys(("color", "shape", "size", "motion"), 0)
    for thing in true:
        match = next((one for one in left if one.color == thing["color"]), left[0] if left else None)
        if match is None:
            continue
        left.remove(match)
        for name in right:
            right[name] += getattr(match, name) == thing[name]
    found = {name: count / len(true) for name, count in right.items()}
    found["camera"] = float((told.camera or "static") == facts["camera"]["motion"])
    found["count"] = float(len(told.objects) == len(true))
    return {**found, "all": float(all(value == 1 for value in found.values()))}
