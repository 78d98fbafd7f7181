"""English as people write prompts: sizes left out, everyday nouns and verbs, and what passes behind what.

All that is told is true; not all is told.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightning_sora.world.config import DIRECTIONS
from lightning_sora.world.facts import Facts, ObjectFacts
from lightning_sora.world.motion import camera_path, positions

Choose = Callable[[Sequence[Any]], Any]

NOUNS = {
    "sphere": ("sphere", "ball", "ball"),
    "cube": ("cube", "cube", "box", "block"),
    "cylinder": ("cylinder", "cylinder", "can", "tube"),
    "cone": ("cone",),
    "torus": ("torus", "ring", "donut"),
}
SIZES = {"small": ("small", "little"), "medium": ("medium-sized", "medium"), "big": ("big", "large")}
VERBS = ("moves", "slides", "goes", "drifts", "glides")
ROLLS = (*VERBS, "rolls", "rolls", "rolls", "rolls")  # of spheres
WAYS = {
    "right": ("right", "to the right", "toward the right"),
    "left": ("left", "to the left", "toward the left"),
    "away": ("away", "away from us", "away from the viewer", "into the distance"),
    "toward": ("toward us", "toward the viewer", "toward the front"),
    "away_right": ("away to the right", "right and away", "away from us to the right"),
    "away_left": ("away to the left", "left and away", "away from us to the left"),
    "toward_right": ("toward us to the right", "right and toward us", "toward the viewer and to the right"),
    "toward_left": ("toward us to the left", "left and toward us", "toward the viewer and to the left"),
}
MOTIONS = {
    "still": ("stays still", "rests on the ground", "sits still", "does not move", "stands still"),
    "bounce": ("bounces", "bounces up and down", "hops", "hops up and down", "jumps up and down"),
    "spin": ("spins", "spins in place", "turns in place", "turns round and round", "turns around"),
    "orbit": ("moves in a circle", "circles", "goes round in a circle", "goes in circles", "circles around"),
    "fall": ("falls down", "falls", "drops", "drops to the ground", "falls to the ground"),
    "behind": (
        "{verb} {way} behind a wall",
        "passes behind a wall",
        "passes behind a wall to the {way}",
        "{verb} behind a grey wall to the {way}",
        "goes {way} behind a wall",
    ),
}
COLLISIONS = ("{one} {verb} {way} into {other}", "{one} {verb} into {other}", "{one} {verb} {way} and hits {other}",
              "{one} hits {other}", "{one} bumps into {other}", "{one} collides with {other}",
              "{other} is hit by {one}")  # fmt: skip
CAMERAS = {
    "pan_left": ("pans left", "pans to the left", "turns left", "turns to the left"),
    "pan_right": ("pans right", "pans to the right", "turns right", "turns to the right"),
    "tilt_up": ("tilts up", "tilts upward", "turns upward"),
    "tilt_down": ("tilts down", "tilts downward", "turns downward"),
    "dolly_in": ("moves in", "moves closer", "pushes in", "dollies in"),
    "dolly_out": ("moves out", "moves back", "pulls back", "dollies out"),
    "zoom_in": ("zooms in",),
    "zoom_out": ("zooms out",),
    "orbit_left": ("circles to the left", "moves round to the left", "orbits left", "orbits to the left"),
    "orbit_right": ("circles to the right", "moves round to the right", "orbits right", "orbits to the right"),
}
STILL = (
    "",
    "",
    "",
    ", the camera is still",
    ", the camera does not move",
    ", static camera",
    " in front of a still camera",
)
VIEWS = ("{scene} while the camera {view}", "{scene} while the camera {view}", "{scene} as the camera {view}",
         "{scene}, the camera {view}", "{scene}, and the camera {view}", "{scene}. the camera {view}",
         "the camera {view} as {scene}", "the camera {view} while {scene}")  # fmt: skip
LOOKS = 17  # moments of a clip at which one object must be further away than another, to be told behind it
MARGIN = 0.6  # of the sum of their radii: by so much further
ACROSS = 1.5  # of the sum of their radii: so near sideways at some moment, else one is beside rather than behind


def write(facts: Facts, seen: Callable[[ObjectFacts], bool], choose: Choose) -> str:
    """Tells a clip.

    Args:
        seen: whether an object's motion shows in the picture as it is told; else it is one "across the ground".
    """
    things = list(facts.objects)
    clauses = []
    if things[0].motion == "strike":
        clauses.append(_collision(things[0], things[1], seen(things[0]), choose))
        things = things[2:]
    pair = choose((None, *behind(facts))) if len(things) == len(facts.objects) > 1 else None
    if pair is not None:
        far, near = pair
        clauses.append(_relation(far, near, seen, choose))
        things = [thing for thing in things if thing not in pair]
    clauses += [_clause(thing, seen(thing), choose) for thing in things]
    last = choose((" and ", ", ", ", and "))
    scene = last.join(part for part in (", ".join(clauses[:-1]), clauses[-1]) if part)
    if facts.camera.motion == "static":
        return scene + choose(STILL) + choose(("", "", "."))
    return choose(VIEWS).format(scene=scene, view=choose(CAMERAS[facts.camera.motion])) + choose(("", "", "."))


def behind(facts: Facts) -> list[tuple[ObjectFacts, ObjectFacts]]:
    """Pairs of objects of which the first is further from the viewer than the second throughout, and not far aside."""
    times = torch.linspace(0, facts.duration, LOOKS)
    camera = camera_path(facts.camera, times, facts.duration)
    places = {thing: positions(thing, times, facts.duration) for thing in facts.objects}
    found = []
    for far, there in places.items():
        for near, here in places.items():
            reach = far.radius + near.radius
            gap = camera.project(there, 2, 2)[1] - camera.project(here, 2, 2)[1]
            aside = (there - here)[:, 0].abs().min()
            if far is not near and gap.min() > MARGIN * reach and aside < ACROSS * reach:
                found.append((far, near))
    return found


def _noun(thing: ObjectFacts, choose: Choose, article: str | None = None) -> str:
    words = f"{choose((SIZES[thing.size][0], '', choose(SIZES[thing.size]), ''))} {thing.color}".strip()
    article = choose(("a", "a", "the")) if article is None else article
    if article == "a" and words[0] in "aeiou":
        article = "an"
    return f"{article} {words} {choose(NOUNS[thing.shape])}"


def _motion(thing: ObjectFacts, seen: bool, choose: Choose) -> str:
    verb = choose(ROLLS if thing.shape == "sphere" else VERBS)
    if thing.motion in DIRECTIONS:
        told = f"{verb} {choose(WAYS[thing.motion])}"
    else:
        way = "right" if thing.heading[0] > 0 else "left"
        told = choose(MOTIONS[thing.motion]).format(verb=verb, way=way)
    return told if seen else f"{told} across the ground"


def _clause(thing: ObjectFacts, seen: bool, choose: Choose) -> str:
    return f"{_noun(thing, choose)} {_motion(thing, seen, choose)}"


def _relation(far: ObjectFacts, near: ObjectFacts, seen: Callable[[ObjectFacts], bool], choose: Choose) -> str:
    """For example: "a red ball rolls behind a blue cube", or the same of the cube in front of the ball."""
    first, second, where = choose(((far, near, "behind"), (far, near, "behind"), (near, far, "in front of")))
    motion = _motion(first, seen(first), choose)
    if first.motion in ("left", "right") and seen(first):  # where to is often left out
        motion = choose((motion, choose(ROLLS if first.shape == "sphere" else VERBS)))
    other = f"{_noun(second, choose, 'a')} {choose(('that', 'which'))} {_motion(second, seen(second), choose)}"
    if second.motion == "still" or choose((False, False, True)):
        other = _noun(second, choose, "a")
    return f"{_noun(first, choose)} {motion} {where} {other}"


def _collision(one: ObjectFacts, other: ObjectFacts, seen: bool, choose: Choose) -> str:
    """For example: "a big red ball rolls right into a small blue cube"."""
    verb = choose(ROLLS if one.shape == "sphere" else VERBS)
    way = choose(WAYS["right" if one.heading[0] > 0 else "left"])
    told = choose(COLLISIONS if seen else COLLISIONS[3:])  # without where to, which the picture would not show
    return told.format(one=_noun(one, choose), other=_noun(other, choose, "a"), verb=verb, way=way)
