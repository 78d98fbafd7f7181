"""Captions from facts."""

from __future__ import annotations

import random

from lightning_sora.randomness import stream_seed
from lightning_sora.world.facts import Facts

# The first wording of each list is the plainest; key 0 takes it.
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
    "orbit": ("moves in a circle", "circles around"),
    "fall": ("falls down", "falls to the ground"),
    "behind": ("passes behind a wall", "moves behind a wall"),
}


def caption(facts: Facts, level: str = "short", key: int = 0) -> str:
    rng = random.Random(stream_seed(key, "caption", level, facts.index))
    parts = [
        f"a {thing.size} {thing.color} {thing.shape} {_pick(rng, SHORT_MOTIONS[thing.motion], key)}"
        for thing in facts.objects
    ]
    return ", ".join(parts)


def _pick(rng: random.Random, choices: tuple[str, ...], key: int) -> str:
    return rng.choice(choices) if key else choices[0]
