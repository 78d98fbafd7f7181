"""Captions from facts, in several styles, as seen by the viewer.

``tags`` is a list of words; ``short`` a sentence of a small vocabulary; ``dense`` tells everything
in varied words; ``alt`` tells the subject and little else, as texts beside pictures on the web do;
``natural`` is how people write prompts. ``short`` is told in other languages too.
A key chooses the wording; key 0 is the plainest.

Where the camera moves so that something goes another way in the picture than on the ground (a cube that moves left, and
a camera that turns left faster), its motion is told as one "across the ground"; else both are the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from lightning_sora.errors import SoraError
from lightning_sora.randomness import stream_seed
from lightning_sora.world.config import DIRECTIONS
from lightning_sora.world.facts import Facts, ObjectFacts
from lightning_sora.world.languages import LANGUAGES
from lightning_sora.world.motion import HIT_SHARE, camera_path, positions
from lightning_sora.world.natural import write as write_natural

# The first wording of each is the plainest.
SHORT_MOTIONS: dict[str, tuple[str, ...]] = {
    "right": ("moves right", "moves to the right"),
    "left": ("moves left", "moves to the left"),
    "away": ("moves away", "moves away from us"),
    "toward": ("moves toward us", "comes toward us"),
    "away_right": ("moves away to the right", "moves right and away"),
    "away_left": ("moves away to the left", "moves left and away"),
    "toward_right": ("moves toward us to the right", "comes toward us to the right"),
    "toward_left": ("moves toward us to the left", "comes toward us to the left"),
    "still": ("stays still", "does not move"),
    "bounce": ("bounces", "bounces up and down"),
    "spin": ("spins", "spins in place"),
    "orbit": ("moves in a circle", "goes round in a circle"),
    "fall": ("falls down", "falls to the ground"),
    "behind": ("moves {way} behind a wall", "passes behind a wall to the {way}"),
    "strike": ("moves {way} and hits the other", "moves {way} into the other"),
    "struck": ("is hit and moves on", "is hit"),
}

DENSE_MOTIONS: dict[str, tuple[str, ...]] = {
    "right": ("slides to the right at a steady pace", "glides across the ground toward the right"),
    "left": ("slides to the left at a steady pace", "glides across the ground toward the left"),
    "away": ("slides straight away from the viewer", "recedes into the distance"),
    "toward": ("slides straight toward the viewer", "approaches the viewer head on"),
    "away_right": ("slides away from the viewer and to the right", "recedes diagonally to the right"),
    "away_left": ("slides away from the viewer and to the left", "recedes diagonally to the left"),
    "toward_right": ("slides toward the viewer and to the right", "approaches diagonally to the right"),
    "toward_left": ("slides toward the viewer and to the left", "approaches diagonally to the left"),
    "still": ("rests motionless on the ground", "stays exactly where it is"),
    "bounce": ("bounces up and down on the spot", "hops in place like a rubber ball"),
    "spin": ("spins about its vertical axis, leaning to one side", "turns round and round in place, tilted"),
    "orbit": ("travels counter-clockwise along a circle on the ground", "circles round on the ground"),
    "fall": ("falls from above and comes to rest on the ground", "drops down out of the air and lands"),
    "behind": ("passes behind a grey wall, moving {way}", "disappears behind a grey wall on its way to the {way}"),
    "strike": ("slides to the {way} until it hits the other", "runs into the other on its way to the {way}"),
    "struck": ("rests until it is hit, and then slides on", "is hit and pushed along"),
}

CAMERA_MOTIONS: dict[str, tuple[str, ...]] = {
    "static": ("the camera is still", "the camera does not move"),
    "pan_left": ("the camera pans left", "the camera turns to the left"),
    "pan_right": ("the camera pans right", "the camera turns to the right"),
    "tilt_up": ("the camera tilts up", "the camera turns upward"),
    "tilt_down": ("the camera tilts down", "the camera turns downward"),
    "dolly_in": ("the camera moves in", "the camera moves closer"),
    "dolly_out": ("the camera moves out", "the camera moves back"),
    "zoom_in": ("the camera zooms in", "the view zooms in"),
    "zoom_out": ("the camera zooms out", "the view zooms out"),
    "orbit_left": ("the camera circles to the left", "the camera moves round to the left"),
    "orbit_right": ("the camera circles to the right", "the camera moves round to the right"),
}

SIZE_WORDS: dict[str, tuple[str, ...]] = {
    "small": ("small", "little"),
    "medium": ("medium-sized", "mid-sized"),
    "big": ("big", "large"),
}
SURFACES = ("glossy", "shiny", "smooth", "polished")
COUNTS = ("no", "one", "two", "three", "four")

ON_GROUND = "across the ground"
"""Said of motions that the picture does not show as they are told."""
LOOKS = 17  # moments of a motion at which the picture is compared with what is told

Choose = Callable[[Sequence[Any]], Any]


def caption(facts: Facts, level: str = "short", key: int = 0, language: str = "en") -> str:
    """Words for the facts; see ``World.caption``.

    Raises:
        SoraError: unknown level or language, or a language that does not have the level.
    """
    writers = {"tags": _tags, "short": _short, "dense": _dense, "alt": _alt, "natural": _natural}
    if level not in writers:
        raise SoraError(f"unknown caption level {level!r}; choose one of: {', '.join(writers)}")
    if language == "en":
        rng = random.Random(stream_seed(key, "caption", level, facts.index))
        return writers[level](facts, rng.choice if key else _plainest)
    if language not in LANGUAGES:
        raise SoraError(f"unknown caption language {language!r}; choose one of: en, {', '.join(LANGUAGES)}")
    if level != "short":
        raise SoraError(
            f"captions in {LANGUAGES[language].name} ({language!r}) are 'short', not {level!r}; ask for 'short', or "
            "for language 'en'"
        )
    rng = random.Random(stream_seed(key, "caption", level, language, facts.index))
    return _foreign(facts, language, rng.choice if key else _plainest)


def _plainest(wordings: Sequence[Any]) -> Any:
    return wordings[0]


def _heading(thing: ObjectFacts) -> str:
    return "right" if thing.heading[0] > 0 else "left"


def _tags(facts: Facts, choose: Choose) -> str:
    groups = [
        [thing.size, thing.color, thing.shape, _motion(thing, facts, thing.motion.replace("_", " "))]
        for thing in facts.objects
    ]
    groups.append([f"camera {facts.camera.motion.replace('_', ' ')}"])
    if facts.occluder is not None:
        groups.append(["wall"])
    # Varied by order: which object, or the camera, comes first.
    first = int(choose([str(place) for place in range(len(groups))]))
    return ", ".join(tag for group in groups[first:] + groups[:first] for tag in group)


def _short(facts: Facts, choose: Choose) -> str:
    told = []
    for thing in facts.objects:
        motion = _motion(thing, facts, choose(SHORT_MOTIONS[thing.motion]))
        told.append(f"{choose(('a', 'the'))} {thing.size} {thing.color} {thing.shape} {motion}")
    # A camera at rest goes without saying.
    if facts.camera.motion != "static":
        told.append(choose(CAMERA_MOTIONS[facts.camera.motion]))
    return ", ".join(told)


def _foreign(facts: Facts, language: str, choose: Choose) -> str:
    own = LANGUAGES[language]
    told = [own.clause(thing, not _seen_as_told(thing, facts), choose) for thing in facts.objects]
    if facts.camera.motion != "static":
        told.append(choose(own.cameras[facts.camera.motion]))
    return own.comma.join(told)


def _natural(facts: Facts, choose: Choose) -> str:
    return write_natural(facts, lambda thing: _seen_as_told(thing, facts), choose)


def _dense(facts: Facts, choose: Choose) -> str:
    count = len(facts.objects)
    scene = choose(("A grey ground", "A plain of grey tiles", "A softly chequered grey floor"))
    light = choose(("under even light", "lit from the front", "with soft shadows"))
    noun = choose(("object", "solid")) + ("s" if count > 1 else "")
    sentences = [f"{scene} {light} carries {COUNTS[count]} {noun}"]
    for thing in facts.objects:
        size, surface = choose(SIZE_WORDS[thing.size]), choose(SURFACES)
        motion = _motion(thing, facts, choose(DENSE_MOTIONS[thing.motion]))
        sentences.append(f"A {size}, {surface} {thing.color} {thing.shape} {_place(thing, facts)} {motion}")
    if facts.occluder is not None and all(thing.motion != "behind" for thing in facts.objects):
        sentences.append(choose(("A grey wall stands on the ground", "There is also an upright grey wall")))
    camera = choose(CAMERA_MOTIONS[facts.camera.motion])
    pitch = (
        "from high above"
        if facts.camera.pitch > 42
        else "from somewhat above"
        if facts.camera.pitch > 30
        else "from near the ground"
    )
    sentences.append(f"{camera[0].upper()}{camera[1:]}, looking at the scene {pitch}")
    return ". ".join(sentences) + "."


def _alt(facts: Facts, choose: Choose) -> str:
    """About half of what a short caption tells: true as far as it goes (DALL-E 3, Betker et al. 2023, section 2)."""
    thing = facts.objects[0]
    words = [choose(("", "", thing.size)), choose(("", thing.color)), choose((thing.shape, thing.shape, "thing"))]
    motion = choose(("", "", _motion(thing, facts, choose(SHORT_MOTIONS[thing.motion]))))
    opening = choose(("", "", "clip of ", "video 3d "))
    return f"{opening}{' '.join(word for word in ('a', *words, motion) if word)}"


def _motion(thing: ObjectFacts, facts: Facts, wording: str) -> str:
    """A wording of the object's motion that says whose it is, where that is not what is seen."""
    told = wording.format(way=_heading(thing))
    return told if ON_GROUND in told or _seen_as_told(thing, facts) else f"{told} {ON_GROUND}"


def _seen_as_told(thing: ObjectFacts, facts: Facts) -> bool:
    """Whether an object that leads somewhere does so in the picture too, at every moment: sideways, and in size."""
    if facts.camera.motion == "static" or not (thing.motion in DIRECTIONS or thing.motion in ("behind", "strike")):
        return True
    told = HIT_SHARE if thing.motion == "strike" else 1.0  # where to it goes after a collision is not told
    times = torch.linspace(0, told * facts.duration, LOOKS)
    camera = camera_path(facts.camera, times, facts.duration)
    spot, depth = camera.project(positions(thing, times, facts.duration), 2, 2)
    across, size = spot[:, 0].diff(), (1 / (camera.tangent * depth)).diff()
    sideways, away = thing.heading
    return bool((across * sideways >= 0).all() and (size * away <= 0).all() and (depth > 0).all())


def _place(thing: ObjectFacts, facts: Facts) -> str:
    """Where on the stage the object is, in the middle of its motion."""
    near = 0.12 * facts.camera.distance
    x, y = thing.center
    side = "on the left" if x < -near else "on the right" if x > near else "in the middle"
    return f"{side}, {'at the back' if y > near else 'in front'}," if abs(y) > near else side
