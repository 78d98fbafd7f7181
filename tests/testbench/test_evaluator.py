"""The shipped evaluator, on clips that it was not trained on: held-out combinations of another seed."""

import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.testbench.evaluator.reading import SHIPPED, Reading, load_evaluator
from lightning_sora.world import Facts, World, measure

FPS = 8.0


@cache
def clip(level: str, side: int, seed: int, index: int) -> tuple[Facts, torch.Tensor]:
    world = World(level, seed=seed, split="heldout")
    facts = world.facts(index)
    return facts, world.render(facts, 17, side, side, FPS)


def clips(level: str, count: int, side: int, seed: int = 4242) -> tuple[list[Facts], list[torch.Tensor]]:
    facts, videos = zip(*(clip(level, side, seed, i) for i in range(count)), strict=True)
    return list(facts), list(videos)


@cache
def readings_of(level: str, count: int, side: int) -> list[Reading]:
    return load_evaluator().read(clips(level, count, side)[1], [FPS] * count)


def right(facts: list[Facts], readings: list[Reading], fact: str) -> float:
    """The share of objects of which a fact is read right; an object of another colour is read wrong."""
    hits = []
    for true, reading in zip(facts, readings, strict=True):
        by_color = {thing.color: thing for thing in reading.objects}
        hits += [
            thing.color in by_color and getattr(by_color[thing.color], fact) == getattr(thing, fact)
            for thing in true.objects
        ]
    return sum(hits) / len(hits)


def test_the_shipped_weights_are_small_and_recorded() -> None:
    record = json.loads(SHIPPED.with_suffix(".json").read_text())
    assert SHIPPED.stat().st_size <= 4_000_000
    for level in ("tiny", "simple"):
        measured = {name: record["accuracy"][f"{level}/{name}"] for name in ("color", "shape", "motion", "camera")}
        assert min(measured["color"], measured["shape"]) >= 0.99
        assert min(measured["motion"], measured["camera"]) >= 0.97
    assert {"medium/count", "medium/depth_order", "medium/size"} <= set(record["accuracy"])


# The least that a share of n trials has with probability 99.9 % where the truth is 99 and 97 %.
@pytest.mark.parametrize(("level", "side", "count"), [("tiny", 32, 100), ("simple", 64, 150)])
def test_facts_of_unseen_combinations_are_read(level: str, side: int, count: int) -> None:
    facts, readings = clips(level, count, side)[0], readings_of(level, count, side)
    least = lambda rate: rate - 3.1 * (rate * (1 - rate) / count) ** 0.5  # noqa: E731
    for fact in ("color", "shape"):
        assert right(facts, readings, fact) >= least(0.99), fact
    assert right(facts, readings, "motion") >= least(0.97)
    cameras = [r.camera == f.camera.motion for f, r in zip(facts, readings, strict=True)]
    assert sum(cameras) / count >= least(0.97)
    assert all(len(r.objects) == len(f.objects) for f, r in zip(facts, readings, strict=True))


def test_several_objects_are_told_apart_and_ordered_in_depth() -> None:
    facts, readings = clips("medium", 60, 64)[0], readings_of("medium", 60, 64)
    assert sum(len(r.objects) == len(f.objects) for f, r in zip(facts, readings, strict=True)) >= 58
    assert right(facts, readings, "shape") >= 0.95
    ordered = []
    for true, reading in zip(facts, readings, strict=True):
        by_color = {thing.color: float(thing.depths.mean()) for thing in reading.objects}
        world = World("medium", seed=4242, split="heldout")
        depth = world.trajectory(true, 17, FPS, 64, 64).depth.mean(0)
        for a in range(len(true.objects)):
            for b in range(a):
                first, second = true.objects[a].color, true.objects[b].color
                if abs(depth[a] - depth[b]) > 0.5 and {first, second} <= set(by_color):
                    ordered.append((by_color[first] < by_color[second]) == bool(depth[a] < depth[b]))
    assert len(ordered) > 20
    assert sum(ordered) / len(ordered) > 0.9


def test_both_objects_and_the_camera_of_the_level_between_are_read() -> None:
    """It is none of the levels that the evaluator was trained on."""
    facts, readings = clips("duo", 60, 64)[0], readings_of("duo", 60, 64)
    assert all(len(r.objects) == 2 for r in readings)
    assert right(facts, readings, "color") >= 0.99
    for fact in ("shape", "motion"):
        assert right(facts, readings, fact) >= 0.95, fact
    assert sum(r.camera == f.camera.motion for f, r in zip(facts, readings, strict=True)) >= 57


def test_it_agrees_with_the_measurement_that_learned_nothing() -> None:
    _, videos = clips("tiny", 24, 32, seed=7)
    readings = load_evaluator().read(videos, [FPS] * 24)
    for video, reading in zip(videos, readings, strict=True):
        measured, (thing,) = measure(video, "tiny", FPS), reading.objects
        assert (thing.color, thing.shape, thing.motion) == (measured.color, measured.shape, measured.motion)


def test_readings_do_not_depend_on_batch_size_and_rate() -> None:
    facts, videos = clips("simple", 6, 64)
    evaluator = load_evaluator()
    together = evaluator.read(videos, [FPS] * 6)
    for video, reading in zip(videos, together, strict=True):
        (alone,) = evaluator.read([video], [FPS])
        assert torch.allclose(alone.features, reading.features, atol=1e-4)
        assert alone.camera == reading.camera
    world = World("simple", seed=4242, split="heldout")
    fast = evaluator.read([world.render(f, 33, 64, 64, 16.0) for f in facts], [16.0] * 6)  # the same event
    assert [r.objects[0].motion for r in fast] == [r.objects[0].motion for r in together]
    large = evaluator.read([world.render(f, 17, 96, 128, FPS) for f in facts], [FPS] * 6)
    assert [r.objects[0].shape for r in large] == [r.objects[0].shape for r in together]


def test_a_mirrored_clip_reads_mirrored() -> None:
    _, videos = clips("simple", 40, 64)
    evaluator = load_evaluator()
    straight = readings_of("simple", 150, 64)[:40]
    mirrored = evaluator.read([video.flip(2) for video in videos], [FPS] * 40)
    swap = lambda name: name.replace("left", "*").replace("right", "left").replace("*", "right")  # noqa: E731
    assert sum(swap(a.camera) == b.camera for a, b in zip(straight, mirrored, strict=True)) >= 39
    same = [swap(a.objects[0].motion) == b.objects[0].motion for a, b in zip(straight, mirrored, strict=True)]
    assert sum(same) >= 37


@pytest.mark.parametrize("style", ["short", "dense", "tags"])
def test_a_caption_finds_its_clip(style: str) -> None:
    world = World("simple", seed=4242, split="heldout")
    facts, evaluator = clips("simple", 32, 64)[0], load_evaluator()
    embedded = torch.stack([r.embedding for r in readings_of("simple", 150, 64)[:32]])
    texts = evaluator.embed_texts([world.caption(f, style, key=90 + i) for i, f in enumerate(facts)])
    cosines = embedded @ texts.T
    assert torch.allclose(texts.norm(dim=1), torch.ones(32), atol=1e-5)
    assert (cosines.argmax(0) == torch.arange(32)).float().mean() > 0.75  # chance: 1 in 32
    others = (cosines.sum() - cosines.diagonal().sum()) / (32 * 31)
    assert cosines.diagonal().mean() - others > 0.4


def test_what_it_cannot_read_is_refused() -> None:
    evaluator = load_evaluator()
    with pytest.raises(SoraError, match="8 frames at 8 frames per second is too short"):
        evaluator.read([torch.zeros(8, 32, 32, 3, dtype=torch.uint8)], [8.0])
    with pytest.raises(SoraError, match=r"torch\.float32"):
        evaluator.read([torch.zeros(17, 32, 32, 3)], [8.0])


def test_nothing_is_found_in_an_empty_clip() -> None:
    (reading,) = load_evaluator().read([torch.full((17, 32, 32, 3), 140, dtype=torch.uint8)], [FPS])
    assert reading.objects == ()


def test_damaged_and_missing_weights_are_refused(tmp_path: Path) -> None:
    copy = tmp_path / SHIPPED.name
    for suffix in (".safetensors", ".json"):
        shutil.copy(SHIPPED.with_suffix(suffix), tmp_path)
    assert load_evaluator(str(copy)) is load_evaluator(str(copy))
    data = bytearray(copy.read_bytes())
    data[-100] ^= 4
    copy.write_bytes(data)
    with pytest.raises(SoraError, match="damaged or of another training"):
        load_evaluator(str(copy))
    with pytest.raises(SoraError, match=r"world_evaluator\.yaml"):
        load_evaluator(str(tmp_path / "none.safetensors"))
