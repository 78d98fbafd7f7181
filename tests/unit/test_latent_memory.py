"""Latents that are kept are those that would be made, and only where a clip is the same at every visit."""

from dataclasses import replace

import pytest
import torch

from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.data.sources import SOURCES
from lightning_sora.lit.latent_memory import LatentMemory, Rows
from lightning_sora.spacetime import Crop, SpacetimeBatch, VideoSize
from tests.integration.conftest import make_data, make_dit


class Counting:
    """Encodes by a function of the pixels, and counts the clips."""

    def __init__(self) -> None:
        self.clips: list[str] = []

    def __call__(self, batch: SpacetimeBatch) -> Rows:
        self.clips += batch.ids
        return [rows.float() / 255 for rows in batch.layout.split(batch.patches)]


def a_batch(data: SpacetimeDataModule) -> SpacetimeBatch:
    return next(iter(data.loader("train")))


def test_a_clip_is_encoded_once_at_each_size_in_any_company() -> None:
    batch, encode, memory = a_batch(make_data(clips=4)), Counting(), LatentMemory()
    memory.rows(batch.select([2, 0]), encode)
    found = memory.rows(batch, encode)
    assert sorted(encode.clips) == sorted(batch.ids)
    assert all(map(torch.equal, found, Counting()(batch)))
    larger = a_batch(make_data(clips=4, height=32))
    memory.rows(larger, encode)
    assert len(encode.clips) == 8


@pytest.mark.parametrize("sizes", ["fixed", "packed"])
def test_a_dit_sees_the_rows_of_each_clip_alone_whatever_its_company(sizes: str) -> None:
    dit, memory = make_dit(patch_size=(1, 1, 1)).eval(), LatentMemory()
    batch = a_batch(make_data(clips=8, sizes=sizes))
    alone = batch.layout.join([dit.model.encode_clips(batch.select([i]))[0] for i in range(len(batch))])
    torch.testing.assert_close(alone, dit.latent_rows(batch), atol=1e-5, rtol=1e-5)
    for _ in range(2):
        assert torch.equal(dit.latent_rows(batch, memory), alone)
    assert memory.bytes == batch.layout.total * 4 * 4  # four channels of four bytes


def test_no_more_is_kept_than_the_limit() -> None:
    batch, encode = a_batch(make_data(clips=4)), Counting()
    size = batch.patches[0].numel() * 4
    memory = LatentMemory(limit=2 * size + 1)
    for _ in range(3):
        memory.rows(batch, encode)
    assert memory.bytes == 2 * size
    assert [encode.clips.count(clip) for clip in batch.ids] == [1, 1, 3, 3]
    memory.clear()
    memory.rows(batch, encode)
    assert len(encode.clips) == 12
    assert memory.bytes == 2 * size


def test_clips_that_differ_by_visit_are_not_kept() -> None:
    native = "world(level='tiny', clips=4, heldout_clips=4, native=((9, 32, 48),))"
    data = make_data()
    data.spec = native
    batch, encode, memory = a_batch(data), Counting(), LatentMemory()
    assert not batch.unchanging
    for _ in range(2):
        memory.rows(batch, encode)
    assert len(encode.clips) == 8
    assert memory.bytes == 0
    memory.rows(replace(batch, unchanging=True), encode)
    assert memory.bytes


@pytest.mark.parametrize(
    "spec",
    [
        "world(clips=2)",
        "worlds(levels=('tiny', 'simple'), clips=2)",
        "mixture(sources={'a': 'world(clips=2)', 'b': 'world(clips=1)'})",
        "world(clips=2, native=((9, 32, 48),))",
        "mixture(sources={'a': 'world(clips=2)', 'b': 'world(clips=1, native=((9, 32, 48),))'})",
    ],
)
def test_sources_that_call_themselves_unchanging_draw_nothing(spec: str) -> None:
    source = SOURCES.create(spec, root=None, split="train", seed=0)

    def visit(index: int, seed: int) -> torch.Tensor:
        return source.load(index, Crop(VideoSize(5, 16, 16), 8.0), generator=torch.Generator().manual_seed(seed)).video

    equal = all(torch.equal(visit(i, 1), visit(i, seed)) for i in range(len(source.infos)) for seed in range(2, 5))
    assert source.unchanging == equal == ("native" not in spec)
