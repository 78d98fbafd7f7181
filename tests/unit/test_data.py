"""The plan, the batches that follow it, and what happens to clips that cannot be read."""

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sora.data.datamodule import PlannedClips, SpacetimeDataModule
from lightning_sora.data.plan import FixedSize, PlanSampler, plan_epoch
from lightning_sora.data.sources import SOURCES, Clip, ClipInfo, DecodeError, Source
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import PatchSize, TokenGrid, unpatchify

PATCH = PatchSize(4, 8, 8)
LONG, STILL = TokenGrid(3, 2, 2), TokenGrid(1, 2, 2)


def test_every_clip_is_in_exactly_one_batch_of_its_own_size() -> None:
    grids = [LONG if i % 3 else STILL for i in range(20)]
    batches = plan_epoch(grids, 4, seed=0, epoch=0, shuffle=True)
    assert Counter(i for b in batches for i in b.clips) == Counter(range(20))
    assert all({grids[i] for i in b.clips} == {b.grid} for b in batches)
    assert plan_epoch(grids, 4, seed=0, epoch=0, shuffle=True) == batches
    assert plan_epoch(grids, 4, seed=0, epoch=1, shuffle=True) != batches


def test_ranks_share_the_plan_of_one() -> None:
    grids = [LONG] * 24
    alone = PlanSampler(grids, 2, seed=3, shuffle=True)
    ranks = [PlanSampler(grids, 2, seed=3, shuffle=True, rank=r, ranks=3) for r in range(3)]
    dealt = list(zip(*(list(r) for r in ranks), strict=True))
    assert [b for step in dealt for b in step] == list(alone)


def test_ranks_get_equal_numbers_in_training_and_each_clip_once_in_evaluation() -> None:
    grids = [LONG] * 14
    for ranks in (2, 3, 4):
        train = [list(PlanSampler(grids, 2, seed=0, shuffle=True, rank=r, ranks=ranks)) for r in range(ranks)]
        assert len({len(t) for t in train}) == 1
        assert {i for t in train for b in t for i in b.clips} == set(range(14))
        judged = [list(PlanSampler(grids, 2, seed=0, shuffle=False, rank=r, ranks=ranks)) for r in range(ranks)]
        assert Counter(i for t in judged for b in t for i in b.clips) == Counter(range(14))


@pytest.mark.parametrize("consumed", [0, 3, 7, 8, 19])
def test_progress_of_one_integer_finds_the_next_batch(consumed: int) -> None:
    grids = [LONG] * 13 + [STILL] * 3

    def endless(sampler: PlanSampler, count: int) -> list[Any]:
        drawn: list[Any] = []
        while len(drawn) < count:
            drawn += list(sampler)
        return drawn[:count]

    whole = endless(PlanSampler(grids, 2, seed=1, shuffle=True), 30)
    rest = endless(PlanSampler(grids, 2, seed=1, shuffle=True, consumed=consumed), 30 - consumed)
    assert rest == whole[consumed:]


@pytest.mark.parametrize(
    ("frames", "fps", "rate", "used"),
    [
        (300, 25.0, None, 17),
        (300, 25.0, 8.0, 17),
        (16, 8.0, None, 13),
        (3, 8.0, None, 1),
        (1, 1.0, 8.0, 1),
        (25, 24.0, 8.0, 9),
    ],
)
def test_short_clips_are_used_at_the_length_that_they_fill(
    frames: int, fps: float, rate: float | None, used: int
) -> None:
    size = FixedSize(17, 16, 16, PATCH)
    grid = size.grid(ClipInfo("x", frames, 100, 100, fps), rate)
    assert grid.size(PATCH) == (used, 16, 16)


class Numbered(Source):
    """Clip i is filled with the value i; some cannot be read."""

    def __init__(self, count: int, bad: set[int]) -> None:
        self.infos = [ClipInfo(f"clip{i}", 5, 16, 16, 8.0, f"number {i}") for i in range(count)]
        self.bad = bad

    def load(self, index: int, frames: int, height: int, width: int, *, generator: Any, fps: Any) -> Clip:
        if index in self.bad:
            raise DecodeError(f"clip{index}: damaged")
        return Clip(torch.full((frames, height, width, 3), index, dtype=torch.uint8), f"number {index}", 8.0)

    def fingerprint(self) -> str:
        return "numbered"


def dataset(bad: set[int], on_error: str) -> PlannedClips:
    source = Numbered(6, bad)
    return PlannedClips(source, [TokenGrid(2, 2, 2)] * 6, PATCH, fps=None, seed=0, on_error=on_error)


def values(rows: Tensor) -> list[int]:
    return [int(v) for v in rows.float().mean(dim=(1, 2))]


def test_a_clip_that_cannot_be_read_is_replaced_by_the_next_and_reported() -> None:
    (plan, *_) = plan_epoch([TokenGrid(2, 2, 2)] * 6, 4, seed=0, epoch=0, shuffle=False)
    batch = dataset({1, 2}, "skip")[plan]
    assert values(batch.patches) == [0, 3, 3, 3]
    assert batch.ids == ("clip0", "clip3", "clip3", "clip3")
    assert batch.captions[1] == "number 3"
    assert batch.skipped == ("clip1: damaged", "clip2: damaged", "clip2: damaged")
    assert torch.equal(unpatchify(batch.patches, TokenGrid(2, 2, 2), PATCH), torch.stack(batch.videos()))


def test_on_error_raise_stops_and_a_dead_folder_is_an_error() -> None:
    (plan, *_) = plan_epoch([TokenGrid(2, 2, 2)] * 6, 4, seed=0, epoch=0, shuffle=False)
    with pytest.raises(DecodeError, match="clip1: damaged"):
        dataset({1}, "raise")[plan]
    with pytest.raises(SoraError, match="no clip of this size can be read; first failure: clip0: damaged"):
        dataset(set(range(6)), "skip")[plan]


def test_world_splits_are_disjoint_and_the_cache_changes_nothing(tmp_path: Any) -> None:
    def source(split: str, cache: str | None) -> Source:
        spec = (
            "world(clips=3, heldout_clips=3)" if cache is None else f"world(clips=3, heldout_clips=3, cache={cache!r})"
        )
        return SOURCES.create(spec, root=None, split=split, seed=0)

    ids = {split: {i.id for i in source(split, None).infos} for split in ("train", "val", "test")}
    assert not ids["train"] & ids["val"]
    assert not ids["val"] & ids["test"]
    draws = torch.Generator()
    for _ in range(2):  # the second time from the file
        for index in range(3):
            fresh = source("train", None).load(index, 5, 16, 16, generator=draws, fps=8)
            kept = source("train", str(tmp_path)).load(index, 5, 16, 16, generator=draws, fps=8)
            assert torch.equal(fresh.video, kept.video)
            assert fresh.caption == kept.caption
    assert source("train", None).fingerprint() != source("val", None).fingerprint()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"frames": 6}, ["frames=6", "5 or 9"]),
        ({"height": 30}, ["height=30", "24 or 32"]),
        ({"batch_size": 0}, ["batch_size=0"]),
        ({"num_workers": -1}, ["num_workers=-1"]),
        ({"fps": 0.0}, ["fps=0.0"]),
        ({"on_error": "ignore"}, ["on_error='ignore'", "'skip' or 'raise'"]),
        ({"source": "wrld"}, ["unknown source 'wrld'", "'world'"]),
        ({"source": "world(level='tny')"}, ["unknown level 'tny'", "tiny"]),
        ({"root": "/data"}, ["no folder", "/data"]),
    ],
)
def test_impossible_requests_are_refused(changes: dict[str, Any], words: list[str]) -> None:
    def build() -> None:
        SpacetimeDataModule(**{"frames": 5, "height": 16, "width": 16, **changes}).loader("train")

    with pytest.raises(SoraError) as caught:
        build()
    assert all(word in str(caught.value) for word in words), caught.value
