"""Prompt adherence: perfect on the truth, at chance on shuffled captions, blind to what it cannot judge."""

from collections import Counter
from typing import Any

import pytest
import torch

from lightning_sora.metrics.adherence import VOCABULARY, WorldAdherence
from lightning_sora.world import World


@pytest.fixture(scope="module")
def clips() -> tuple[list[torch.Tensor], list[dict[str, Any]]]:
    world = World("tiny", seed=5, split="heldout")
    facts = [world.facts(i) for i in range(12)]
    videos = [world.render(f, 17, 32, 32, 8.0) for f in facts]
    return videos, [{**f.as_dict(), "config": world.config} for f in facts]


def judge(videos: list[torch.Tensor], facts: list[dict[str, Any]]) -> dict[str, float]:
    metric = WorldAdherence()
    metric.update(videos, facts, [8.0] * len(videos))
    return {name: float(value) for name, value in metric.compute().items()}


def test_real_clips_are_as_their_captions_say(clips: Any) -> None:
    rates = judge(*clips)
    assert rates["adherence_clips"] == 12
    assert {rates[f"adherence_{fact}"] for fact in ("color", "shape", "motion", "all")} == {1.0}


def test_the_shuffled_rate_is_the_chance_that_another_caption_fits(clips: Any) -> None:
    """On the truth: the share of ordered pairs of different clips that agree on the fact."""
    rates = judge(*clips)
    for fact in VOCABULARY:
        counts = Counter(f["objects"][0][fact] for f in clips[1])
        pairs = sum(c * (c - 1) for c in counts.values())
        assert rates[f"adherence_{fact}_shuffled"] == pytest.approx(pairs / (12 * 11))


def test_clips_shown_for_another_caption_score_what_the_captions_share(clips: Any) -> None:
    videos, facts = clips
    rates = judge(videos[1:] + videos[:1], facts)
    for fact in VOCABULARY:
        names = [f["objects"][0][fact] for f in facts]
        shared = sum(a == b for a, b in zip(names[1:] + names[:1], names, strict=True)) / 12
        assert rates[f"adherence_{fact}"] == pytest.approx(shared)


def test_grey_clips_show_nothing(clips: Any) -> None:
    blank = [torch.full_like(video, 128) for video in clips[0]]
    rates = judge(blank, clips[1])
    assert rates["adherence_color"] == rates["adherence_shape"] == rates["adherence_motion"] == 0


def test_the_order_and_the_batches_do_not_matter(clips: Any) -> None:
    videos, facts = clips
    metric = WorldAdherence()
    for part in (slice(7, 12), slice(0, 3), slice(3, 7)):
        metric.update(videos[part], facts[part], [8.0] * len(videos[part]))
    parts = {name: float(value) for name, value in metric.compute().items()}
    assert parts == pytest.approx(judge(videos, facts))


def test_clips_of_many_objects_are_not_judged(clips: Any) -> None:
    videos, facts = clips
    two = [{**f, "objects": f["objects"] * 2} for f in facts]
    assert judge(videos, two) == {"adherence_clips": 0.0}
