"""Facts and captions: pure, split by pairs, told in words."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.testbench.caption_facts import recovered
from lightning_sora.testbench.evaluator.text import vocabulary
from lightning_sora.world import COLORS, LEVELS, SHAPES, Facts, World, WorldConfig
from lightning_sora.world.config import DIRECTIONS


@pytest.mark.parametrize("level", LEVELS)
def test_a_clip_is_a_pure_function_of_configuration_seed_and_index(level: str) -> None:
    first, second = World(level, seed=3), World(level, seed=3)
    torch.manual_seed(0)
    forward = [first.facts(index) for index in range(6)]
    torch.manual_seed(1)
    state = torch.get_rng_state()
    assert [second.facts(index) for index in reversed(range(6))] == forward[::-1]
    clips = [world.render(forward[2], 3, 16, 24, 4) for world in (first, second)]
    assert torch.equal(*clips)
    assert torch.equal(torch.get_rng_state(), state)
    assert World(level, seed=4).facts(2) != forward[2]
    assert len({json.dumps(facts.as_dict()) for facts in forward}) == 6


@pytest.mark.parametrize("level", LEVELS)
def test_training_and_heldout_clips_share_no_pair_of_colour_and_shape(level: str) -> None:
    def pairs(split: str) -> set[tuple[str, str]]:
        world = World(level, split=split)
        return {(thing.color, thing.shape) for index in range(60) for thing in world.facts(index).objects}

    train, heldout = pairs("train"), pairs("heldout")
    assert not train & heldout
    assert heldout <= set(LEVELS[level].heldout_pairs)
    # Every colour and every shape of a held-out pair is known from training, apart from each other.
    assert {color for color, _ in heldout} <= {color for color, _ in train}
    assert {shape for _, shape in heldout} <= {shape for _, shape in train}


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_stays_within_its_configuration(level: str) -> None:
    config, world = LEVELS[level], World(level)
    for index in range(40):
        facts = world.facts(index)
        assert config.objects[0] <= len(facts.objects) <= config.objects[1]
        assert facts.camera.motion in config.cameras
        assert len({thing.color for thing in facts.objects}) == len(facts.objects)
        assert sum(thing.motion == "behind" for thing in facts.objects) <= (facts.occluder is not None)
        for thing in facts.objects:
            assert thing.motion in config.motions
            assert not (thing.motion == "spin" and thing.shape == "sphere")


def test_tiny_clips_stay_inside_the_frame_and_travel_far() -> None:
    world = World("tiny")
    for index in range(16):
        facts = world.facts(index)
        clip = world.render(facts, 17, 32, 32, 8).float()
        coloured = clip.amax(-1) - clip.amin(-1) > 60
        edge = torch.cat([coloured[:, [0, -1]].flatten(), coloured[:, :, [0, -1]].flatten()])
        assert edge.float().mean() < 0.01
        path = world.trajectory(facts, 17, 8, 32, 32).projected[:, 0]
        assert (path[-1] - path[0]).norm() > 0.33 * 32


@pytest.mark.parametrize("key", [0, 1, 2])
@pytest.mark.parametrize("level", ["tags", "short", "dense"])
def test_captions_tell_every_object_and_the_camera(level: str, key: int) -> None:
    world = World("hard")
    for index in range(12):
        facts = world.facts(index)
        text = world.caption(facts, level, key)
        assert text == world.caption(facts, level, key)
        words = set(re.findall("[a-z]+", text))
        assert words & set(COLORS) == {thing.color for thing in facts.objects}
        assert words & set(SHAPES) == {thing.shape for thing in facts.objects}
        assert "camera" in text or "zooms" in text


def test_alt_texts_are_true_but_leave_facts_out() -> None:
    world = World("tiny")
    told = dict.fromkeys(("color", "shape", "size", "motion"), 0)
    for index in range(200):
        thing = world.facts(index).objects[0]
        text = world.caption(world.facts(index), "alt", key=index + 1)
        words = set(re.findall("[a-z]+", text))
        assert words & set(COLORS) <= {thing.color}
        assert words & set(SHAPES) <= {thing.shape}
        assert words & {"right", "left", "away", "toward"} <= set(thing.motion.split("_"))
        for name in ("color", "shape", "size"):
            told[name] += getattr(thing, name) in words
        told["motion"] += "moves" in words or "comes" in words
    # A third, a half, two thirds and a third: within five standard deviations of 200 draws.
    for name, share in (("size", 1 / 3), ("color", 1 / 2), ("shape", 2 / 3), ("motion", 1 / 3)):
        assert abs(told[name] / 200 - share) < 5 * (share * (1 - share) / 200) ** 0.5, name


def test_captions_name_the_direction_as_the_viewer_sees_it() -> None:
    words = {"right": "right", "left": "left", "away": "away", "toward": "toward"}
    world = World("tiny")
    for index in range(40):
        facts = world.facts(index)
        said = {word for word in words if word in world.caption(facts, "short", key=index)}
        assert said == set(facts.objects[0].motion.split("_"))


def pinhole(facts: Facts, points: np.ndarray, share: float) -> np.ndarray:
    """Right and depth of world points as a camera sees them, written out: only its horizontal turn matters to them."""
    kind, _, way = facts.camera.motion.partition("_")
    swing = (share - 0.5) * (-1 if way in ("left", "down", "out") else 1)
    pitch, fov = np.radians(facts.camera.pitch), np.radians(facts.camera.fov)
    distance = facts.camera.distance * (1 - 0.4 * swing * (kind == "dolly"))
    round_, turn = np.radians(-50 * swing) * (kind == "orbit"), 0.45 * swing * fov * (kind == "pan")
    look = pitch - 0.35 * swing * fov * (kind == "tilt")

    def forward(yaw: float, down: float) -> np.ndarray:
        return np.array([np.sin(yaw) * np.cos(down), np.cos(yaw) * np.cos(down), -np.sin(down)])

    eye = np.array(facts.camera.target) - distance * forward(round_, pitch)
    yaw = round_ + turn
    depth = (points - eye) @ forward(yaw, look)
    focal = (1.6**swing if kind == "zoom" else 1.0) / np.tan(fov / 2)
    right = (points - eye) @ np.array([np.cos(yaw), -np.sin(yaw), 0.0])
    return np.array([focal * right / depth, focal / depth])


@pytest.mark.slow
@pytest.mark.parametrize("style", ["tags", "short", "dense", "alt"])
def test_no_caption_tells_a_motion_that_the_picture_contradicts(style: str) -> None:
    """Where something goes another way in the picture than on the ground, the caption says that it means the ground."""
    told = on_ground = 0
    for level in ("simple", "medium", "hard"):
        world = World(level, seed=5)
        for index in range(120):
            facts = world.facts(index)
            text = world.caption(facts, style, key=index + 1).lower()
            said_of = {thing.color: clause for thing in facts.objects
                       if len(found := text.split(thing.color, 1)) == 2
                       for clause in [re.split(r"camera|wall|[.]|" + "|".join(COLORS), found[1])[0]]}  # fmt: skip
            for thing in facts.objects:
                words = set(re.findall("[a-z]+", said_of.get(thing.color, ""))) & {"left", "right", "away", "toward"}
                if thing.motion not in DIRECTIONS or not words:
                    continue
                ends = [np.array([*thing.center, 0.9 * thing.radius]) + np.array([*thing.heading, 0]) * thing.travel * s
                        for s in (-0.5, 0.5)]  # fmt: skip
                (x0, near0), (x1, near1) = (pinhole(facts, end, share) for end, share in zip(ends, (0, 1), strict=True))
                seen = {"left": x1 < x0, "right": x1 > x0, "away": near1 < near0, "toward": near1 > near0}
                said = [word for word in thing.motion.split("_") if word in words]
                if "across the ground" in said_of[thing.color]:
                    on_ground += 1
                else:
                    told += 1
                    assert all(seen[word] for word in said), (level, index, text)
    assert told > 20
    assert on_ground > 2


@pytest.mark.parametrize("style", ["tags", "short", "dense"])
def test_whose_motion_is_told_is_read_back_and_known_to_the_evaluator(style: str) -> None:
    world, known = World("hard"), set(vocabulary())
    for index in range(40):
        facts = world.facts(index)
        text = world.caption(facts, style, key=index)
        assert recovered(text, facts.as_dict())["motion"] == 1, text
        assert {"across", "the", "ground"} <= known


def test_a_camera_at_rest_leaves_captions_as_they_are() -> None:
    world = World("medium")
    for index in range(40):
        facts = world.facts(index)
        still = replace(facts, camera=replace(facts.camera, motion="static"))
        assert "across the ground" not in world.caption(still, "short", key=index)


def test_the_wording_varies_with_the_key() -> None:
    world = World("tiny")
    facts = world.facts(0)
    for level, least in (("tags", 2), ("short", 2), ("dense", 10), ("alt", 5)):
        assert len({world.caption(facts, level, key) for key in range(40)}) >= least


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"colors": ("red", "mauve")}, "mauve"),
        ({"objects": (0, 1)}, "objects"),
        ({"holdout": 9}, "holdout"),
        ({"shapes": ("sphere",), "motions": ("spin",), "holdout": 0}, "spinning sphere"),
        ({"stage": 0.0}, "stage"),
    ],
)
def test_an_impossible_world_is_refused_with_its_reason(changes: dict[str, object], named: str) -> None:
    with pytest.raises(SoraError, match=named):
        replace(WorldConfig(), **changes)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(SoraError, match="tiny"):
        World("minute")
    with pytest.raises(SoraError, match="heldout"):
        World("tiny", split="test")
    world = World("tiny")
    with pytest.raises(SoraError, match="dense"):
        world.caption(world.facts(0), "long")
    with pytest.raises(SoraError, match="positive"):
        world.render(world.facts(0), 0, 32, 32, 8)
    with pytest.raises(SoraError, match="too few"):
        World(replace(LEVELS["hard"], holdout=2), split="heldout")


def test_a_configuration_from_a_recipe_may_hold_lists() -> None:
    listed = WorldConfig(colors=["red", "blue"], objects=[1, 1], holdout=2)  # type: ignore[arg-type]
    assert listed == WorldConfig(colors=("red", "blue"), objects=(1, 1), holdout=2)
    assert hash(listed) == hash(replace(listed))
