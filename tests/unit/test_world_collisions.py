"""Collisions: by the laws of mechanics, told in words, and left to those who can judge them."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.testbench.adherence import FACTS, PromptAdherence, agreement, asked_codes
from lightning_sora.testbench.caption_facts import read_caption
from lightning_sora.testbench.evaluator.reading import load_evaluator
from lightning_sora.testbench.evaluator.vocabulary import answers
from lightning_sora.testbench.scores import world_scores
from lightning_sora.world import LEVELS, Facts, World
from lightning_sora.world.draw import footprint
from lightning_sora.world.motion import positions

CONFIG = replace(LEVELS["medium"], motions=("collide",), objects=(2, 2), occluder=0.0)
WORLD = World(CONFIG, seed=2)
CLIPS = [WORLD.facts(index) for index in range(24)]
HIT = 0.4 * CONFIG.duration


def places(facts: Facts, times: list[float]) -> list[torch.Tensor]:
    return [positions(thing, times, facts.duration)[:, :2] for thing in facts.objects]


def test_momentum_and_energy_are_kept_and_the_one_that_is_struck_rested() -> None:
    ratios = set()
    for facts in CLIPS:
        one, other = facts.objects
        masses = one.radius**3, other.radius**3
        speeds = []
        for start in (0.1, HIT + 0.1):
            there = places(facts, [start, start + 0.2])
            speeds.append([(path[1] - path[0]) / 0.2 for path in there])
        (came, rest), (left, pushed) = speeds
        assert rest.norm() == 0
        assert came @ torch.tensor(one.heading) > 0.9
        torch.testing.assert_close(masses[0] * came, masses[0] * left + masses[1] * pushed, atol=1e-4, rtol=1e-4)
        energy = [m * v.square().sum() for m, v in zip((*masses, *masses), (came, rest, left, pushed), strict=True)]
        torch.testing.assert_close(energy[0], energy[2] + energy[3], atol=1e-4, rtol=1e-4)
        ratios.add((one.size, other.size))
    assert {("small", "big"), ("big", "small")} <= ratios


def test_they_touch_once_and_never_overlap() -> None:
    times = [CONFIG.duration * step / 200 for step in range(201)]
    for facts in CLIPS:
        first, second = places(facts, times)
        gap = (first - second).norm(dim=1) - footprint(facts.objects[0]) - footprint(facts.objects[1])
        assert abs(float(gap.min())) < 1e-4
        assert abs(times[int(gap.argmin())] - HIT) < 0.011
        assert (gap[[0, -1]] > 0.2).all()


def test_among_other_motions_collisions_have_their_share() -> None:
    mixed = World(replace(CONFIG, motions=("left", "still", "collide"), objects=(2, 3)), seed=0)
    clips = [mixed.facts(index) for index in range(120)]
    collide = [f for f in clips if f.objects[0].motion == "strike"]
    assert 20 <= len(collide) <= 60  # a third of 120, within four standard deviations
    for facts in clips:
        motions = [thing.motion for thing in facts.objects]
        assert motions[:2] == ["strike", "struck"] or not {"strike", "struck"} & set(motions)
        assert set(motions[2:]) <= {"left", "still"}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"objects": (1, 1)}, "takes two objects"),
        ({"objects": (1, 2)}, r"set objects=\(2, 2\)"),
        ({"objects": (2, 3)}, r"set objects=\(2, 2\)"),
    ],
)
def test_worlds_in_which_nothing_can_collide_are_refused(changes: dict[str, object], named: str) -> None:
    with pytest.raises(SoraError, match=named):
        replace(CONFIG, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("style", ["tags", "short", "dense"])
def test_captions_tell_both_and_are_read_back(style: str) -> None:
    for facts, key in itertools.product(CLIPS[:8], (0, 3)):
        text = WORLD.caption(facts, style, key)
        told = read_caption(text)
        said, true = ({(t.color, t.shape, t.motion) for t in of.objects} for of in (told, facts))
        assert said == true, text


def test_people_s_words_tell_who_strikes_whom() -> None:
    said = set()
    for facts, key in itertools.product(CLIPS, range(1, 5)):
        text = WORLD.caption(facts, "natural", key)
        one, other = facts.objects
        passive = "is hit by" in text
        first, last = (other, one) if passive else (one, other)
        assert text.index(first.color) < text.index(last.color), text
        verb = re.search("is hit by|hits|bumps into|collides with|into", text)
        assert verb is not None, text
        said.add(verb[0])
        if facts.camera.motion == "static" and (way := re.search(r"\b(right|left)\b", text)):
            assert way[0] == ("right" if one.heading[0] > 0 else "left"), text
    assert said == {"is hit by", "hits", "bumps into", "collides with", "into"}


#: In the plainest words, of a small red sphere that comes from the left and a big blue cube.
SENTENCES = {
    "en": "a small red sphere moves right and hits the other, a big blue cube is hit and moves on",
    "es": "una esfera roja pequeña se mueve a la derecha y golpea al otro objeto, un cubo azul grande recibe un golpe "
    "y avanza",
    "zh": "一个红色的小球体向右移动并撞上另一个，一个蓝色的大立方体被撞后继续移动",
    "ar": "كرة حمراء صغيرة تتحرك إلى اليمين وتصدم الآخر، مكعب أزرق كبير يتلقى صدمة ويتابع",
}


@pytest.mark.parametrize("language", SENTENCES)
def test_sentences(language: str) -> None:
    facts = next(f for f in CLIPS if f.objects[0].heading[0] > 0)
    one = replace(facts.objects[0], color="red", shape="sphere", size="small")
    other = replace(facts.objects[1], color="blue", shape="cube", size="big")
    still = replace(facts, objects=(one, other), camera=replace(facts.camera, motion="static"))
    assert WORLD.caption(still, language=language) == SENTENCES[language]


def test_what_the_evaluator_does_not_read_is_not_judged() -> None:
    told = [{**facts.as_dict(), "config": vars(CONFIG)} for facts in CLIPS[:4]]
    asked = asked_codes(told)
    motion = FACTS.index("motion")
    scores = agreement(asked.nan_to_num(0.0), asked)
    assert scores[:, motion].isnan().all()
    assert (scores[:, [i for i in range(len(FACTS)) if i != motion]] == 1).all()
    # A clip of both kinds is judged by what can be judged.
    mixed = Facts.from_dict(told[0])
    moving = replace(mixed.objects[0], motion="left"), *mixed.objects[1:]
    half = asked_codes([{**replace(mixed, objects=moving).as_dict(), "config": vars(CONFIG)}])
    wrong = half.clone().nan_to_num(0.0)
    assert agreement(wrong, half)[0, motion] == 1
    with pytest.raises(SoraError, match="reads no motion 'strike'"):
        answers(told, 17, 8.0)


@pytest.mark.slow
def test_an_evaluation_of_collisions_counts_the_other_facts() -> None:
    facts = CLIPS[:4]
    clips = [WORLD.render(f, 17, 64, 64, 8.0) for f in facts]
    told = [{**f.as_dict(), "config": vars(CONFIG)} for f in facts]
    readings = load_evaluator().read(clips, [8.0] * 4)
    metric = PromptAdherence()
    metric.update(readings, told, [str(i) for i in range(4)])
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found["color"] == found["count"] == 1
    assert found["motion"] != found["motion"]  # NaN: nothing was judged
    assert 0.8 < found["mean"] <= 1
    assert all("trajectory_error" not in world_scores(*pair) for pair in zip(readings, told, strict=True))
