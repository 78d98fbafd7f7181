"""Prompt adherence: perfect on the truth, at chance on shuffled captions, fact by fact."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lightning_sora.testbench.adherence import FACTS, PromptAdherence, agreement, asked_codes, read_codes
from lightning_sora.testbench.evaluator.reading import load_evaluator
from lightning_sora.world import Facts, World

WORLD = World("tiny", seed=5, split="heldout")
COUNT = 32


def told(facts: Facts) -> dict[str, Any]:
    return {**facts.as_dict(), "config": vars(WORLD.config)}


@pytest.fixture(scope="module")
def facts() -> list[Facts]:
    return [WORLD.facts(i) for i in range(COUNT)]


@pytest.fixture(scope="module")
def videos(facts: list[Facts]) -> list[torch.Tensor]:
    return [WORLD.render(f, 17, 32, 32, 8.0) for f in facts]


def rates(videos: list[torch.Tensor], facts: list[Facts]) -> dict[str, float]:
    metric = PromptAdherence()
    readings = load_evaluator().read(videos, [8.0] * len(videos))
    metric.update(readings, [told(f) for f in facts], [str(i) for i in range(len(facts))])
    return {name: float(value) for name, value in metric.compute().items()}


def test_rendered_clips_are_as_their_captions_say(videos: list, facts: list[Facts]) -> None:
    found = rates(videos, facts)
    assert found["clips"] == COUNT
    assert {found[name] for name in (*FACTS, "mean", "all")} == {1.0}


def test_for_shuffled_captions_adherence_is_what_captions_share(videos: list, facts: list[Facts]) -> None:
    found = rates(videos[1:] + videos[:1], facts)
    for name in ("color", "shape", "size", "motion"):
        values = [getattr(f.objects[0], name) for f in facts]
        shared = sum(a == b for a, b in zip(values[1:] + values[:1], values, strict=True)) / COUNT
        assert found[name] == pytest.approx(shared), name


def test_the_shuffled_rate_is_about_chance(videos: list, facts: list[Facts]) -> None:
    found = rates(videos, facts)
    for name in ("color", "shape", "size", "motion"):
        values = [getattr(f.objects[0], name) for f in facts]
        pairs = [a == b for i, a in enumerate(values) for j, b in enumerate(values) if i != j]
        assert found[f"{name}_shuffled"] == pytest.approx(sum(pairs) / len(pairs), abs=0.08)


@pytest.mark.parametrize(
    ("fact", "value"), [("color", "purple"), ("shape", "torus"), ("size", "big"), ("motion", "toward_left")]
)
def test_one_wrong_fact_costs_that_fact_alone(fact: str, value: str, facts: list[Facts]) -> None:
    others = [f for f in facts if getattr(f.objects[0], fact) != value][:8]
    heading = {"heading": (-(0.5**0.5), -(0.5**0.5))} if fact == "motion" else {}
    radius = {"radius": 1.05} if fact == "size" else {}
    shown = [replace(f, objects=(replace(f.objects[0], **{fact: value}, **heading, **radius),)) for f in others]
    found = rates([WORLD.render(f, 17, 32, 32, 8.0) for f in shown], others)
    assert found[fact] == 0.0
    for name in ("count", "camera", "shape", "motion"):
        if name != fact:
            assert found[name] == 1.0, name


def test_a_missing_object_costs_all_that_it_should_have_been(facts: list[Facts]) -> None:
    blank = [torch.full((17, 32, 32, 3), 128, dtype=torch.uint8)] * 3
    found = rates(blank, facts[:3])
    assert [found[name] for name in ("color", "count", "shape", "size", "motion", "all")] == [0.0] * 6


def test_objects_of_one_clip_are_matched_by_colour() -> None:
    world = World("medium", seed=8)
    both = next(f for f in map(world.facts, range(50)) if len(f.objects) == 2)
    asked = asked_codes([{**both.as_dict(), "config": vars(world.config)}])
    turned = asked_codes([{**replace(both, objects=both.objects[::-1]).as_dict(), "config": vars(world.config)}])
    assert torch.equal(asked, turned)  # objects have no order
    assert agreement(asked, asked).tolist() == [[1.0] * len(FACTS)]
    exchanged = replace(
        both,
        objects=(
            replace(both.objects[0], color=both.objects[1].color),
            replace(both.objects[1], color=both.objects[0].color),
        ),
    )
    swapped = agreement(asked_codes([{**exchanged.as_dict(), "config": vars(world.config)}]), asked)[0]
    row = dict(zip(FACTS, swapped.tolist(), strict=True))
    assert row["color"] == row["count"] == 1.0
    assert row["shape"] == float(both.objects[0].shape == both.objects[1].shape)


def test_batches_and_order_change_nothing(videos: list, facts: list[Facts]) -> None:
    readings = load_evaluator().read(videos, [8.0] * COUNT)
    whole, parts = PromptAdherence(), PromptAdherence()
    asked, names = [told(f) for f in facts], [str(i) for i in range(COUNT)]
    whole.update(readings, asked, names)
    for part in (slice(20, 32), slice(0, 7), slice(7, 20)):
        parts.update(readings[part], asked[part], names[part])
    assert {k: float(v) for k, v in whole.compute().items()} == {k: float(v) for k, v in parts.compute().items()}
    assert read_codes(readings).shape == (COUNT, 33)


def test_nothing_was_judged() -> None:
    with pytest.warns(UserWarning, match="before the"):
        assert PromptAdherence().compute() == {"clips": 0.0}
