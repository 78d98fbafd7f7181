"""The batches that follow the plan, and what happens to clips that cannot be read."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_sora.data.datamodule import SpacetimeDataModule
from lightning_sora.data.plan import PlannedBatch
from lightning_sora.data.reading import PlannedClips
from lightning_sora.data.sources import SOURCES, Clip, ClipInfo, DecodeError, Source
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import Crop, PatchSize, TokenGrid, VideoSize, unpatchify

PATCH = PatchSize(4, 8, 8)
FIRST = PlannedBatch((0, 1, 2, 3), (TokenGrid(2, 2, 2),) * 4, (0, 0, 0, 0))


class Numbered(Source):
    """Clip i is filled with the value i; some cannot be read."""

    def __init__(self, count: int, bad: set[int]) -> None:
        self.infos = [ClipInfo(f"clip{i}", 5, 16, 16, 8.0, f"number {i}") for i in range(count)]
        self.bad = bad

    def load(self, index: int, crop: Crop, *, generator: Any) -> Clip:
        if index in self.bad:
            raise DecodeError(f"clip{index}: damaged")
        return Clip(torch.full((*crop.size, 3), index, dtype=torch.uint8), f"number {index}", 8.0)

    def fingerprint(self) -> str:
        return "numbered"


def dataset(bad: set[int], on_error: str) -> PlannedClips:
    source = Numbered(6, bad)
    return PlannedClips(source, dict.fromkeys(range(6), TokenGrid(2, 2, 2)), PATCH, fps=None, seed=0, on_error=on_error)


def values(rows: Tensor) -> list[int]:
    return [int(v) for v in rows.float().mean(dim=(1, 2))]


def test_a_source_of_an_earlier_version_is_told_what_changed() -> None:
    with pytest.raises(
        SoraError, match=r"Old.load cannot be called .*write def load\(self, index, crop, \*, generator\)"
    ):

        class Old(Source):
            def load(self, index: int, frames: int, height: int, width: int, *, generator: Any, fps: Any) -> Clip:  # type: ignore[override]
                raise NotImplementedError

            def fingerprint(self) -> str:
                return ""

    with pytest.raises(SoraError, match=r"Prepared.prepare cannot .*'fps'.*write def prepare\(self, crops\)"):

        class Prepared(Numbered):
            def prepare(self, sizes: Any, fps: Any) -> None:  # type: ignore[override]
                pass

    class Wide(Numbered):
        def load(self, *args: Any, **options: Any) -> Clip:
            return super().load(*args, **options)


def test_a_clip_that_cannot_be_read_is_replaced_by_the_next_and_reported() -> None:
    batch = dataset({1, 2}, "skip")[FIRST]
    assert values(batch.patches) == [0, 3, 3, 3]
    assert batch.ids == ("clip0", "clip3", "clip3", "clip3")
    assert batch.captions[1] == "number 3"
    assert batch.skipped == ("clip1: damaged", "clip2: damaged", "clip2: damaged")
    assert torch.equal(unpatchify(batch.patches, TokenGrid(2, 2, 2), PATCH), torch.stack(batch.videos()))


def test_on_error_raise_stops_and_a_dead_folder_is_an_error() -> None:
    with pytest.raises(DecodeError, match="clip1: damaged"):
        dataset({1}, "raise")[FIRST]
    with pytest.raises(SoraError, match="no clip of this size can be read; first failure: clip0: damaged"):
        dataset(set(range(6)), "skip")[FIRST]


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
            fresh = source("train", None).load(index, Crop(VideoSize(5, 16, 16), 8), generator=draws)
            kept = source("train", str(tmp_path)).load(index, Crop(VideoSize(5, 16, 16), 8), generator=draws)
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
