"""Patches, grids and layouts: bijective, causal, and packed without loss."""

from typing import Any

import pytest
import torch

from lightning_sora.errors import SoraError
from lightning_sora.spacetime import PatchSize, SpacetimeBatch, TokenGrid, TokenLayout, patchify, unpatchify

PATCHES = [PatchSize(1, 1, 1), PatchSize(4, 8, 8), PatchSize(2, 4, 4), PatchSize(3, 5, 2)]
GRIDS = [TokenGrid(1, 1, 1), TokenGrid(1, 3, 2), TokenGrid(4, 1, 2), TokenGrid(3, 2, 5)]


def clip_of(grid: TokenGrid, patch: PatchSize, dtype: torch.dtype, *batch: int) -> torch.Tensor:
    size = grid.size(patch)
    return torch.randint(0, 256, (*batch, *size, 3), generator=torch.Generator().manual_seed(1)).to(dtype)


@pytest.mark.parametrize("patch", PATCHES, ids=str)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_unpatchify_inverts_patchify(grid: TokenGrid, patch: PatchSize, dtype: torch.dtype) -> None:
    video = clip_of(grid, patch, dtype, 2)
    rows = patchify(video, patch)
    assert rows.shape == (2, grid.tokens, patch.volume * 3)
    assert TokenGrid.of(*grid.size(patch), patch) == grid
    assert torch.equal(unpatchify(rows, grid, patch), video)


def test_rows_follow_the_token_order_and_the_first_row_is_the_first_frame() -> None:
    patch, grid = PatchSize(2, 4, 4), TokenGrid(3, 2, 2)
    video = clip_of(grid, patch, torch.uint8)
    rows = patchify(video, patch)
    t, y, x = 2, 1, 0
    block = video[1 + (t - 1) * 2 : 1 + t * 2, y * 4 : y * 4 + 4, x * 4 : x * 4 + 4]
    assert torch.equal(rows[(t * 2 + y) * 2 + x], block.flatten())
    assert torch.equal(patchify(video[:1], patch), rows[: grid.height * grid.width])


def test_cutting_twice_is_cutting_once() -> None:
    """A VAE's stride times a DiT's patch names the same grid as either step after the other."""
    stride, patch = PatchSize(4, 8, 8), PatchSize(2, 1, 2)
    grid = TokenGrid(3, 2, 4)
    size = grid.size(stride * patch)
    assert TokenGrid.of(*TokenGrid.of(*size, stride), patch) == grid


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((16, 32, 32), ["frames=16", "13 or 17"]),
        ((17, 30, 32), ["height=30", "24 or 32"]),
        ((17, 32, 3), ["width=3", "nearest: 8"]),
        ((0, 32, 32), ["frames=0", "nearest: 1"]),
    ],
)
def test_an_impossible_size_names_the_nearest_that_work(size: tuple[int, int, int], words: list[str]) -> None:
    with pytest.raises(SoraError) as caught:
        TokenGrid.of(*size, PatchSize(4, 8, 8))
    assert all(word in str(caught.value) for word in words)


def test_packed_layout_splits_joins_and_broadcasts_like_the_clips_alone() -> None:
    grids = (TokenGrid(2, 2, 2), TokenGrid(1, 3, 1), TokenGrid(3, 1, 2))
    layout = TokenLayout.pack(grids)
    assert layout.shape == (1, 17)
    assert layout.cumulative_lengths().tolist() == [0, 8, 11, 17]
    rows = torch.randn(1, 17, 5)
    parts = layout.split(rows)
    assert [len(p) for p in parts] == [8, 3, 6]
    assert torch.equal(layout.join(parts), rows)
    per_clip = torch.randn(3, 5)
    spread = layout.per_token(per_clip)
    assert all(torch.equal(p, per_clip[i].expand_as(p)) for i, p in enumerate(layout.split(spread)))
    means = layout.clip_mean(rows[..., 0])
    assert torch.allclose(means, torch.stack([p[:, 0].mean() for p in parts]))
    for i, part in enumerate(parts):
        alone = layout.clip(i).coordinates()
        assert torch.equal(layout.coordinates()[layout.coordinates()[:, 0] == i][:, 1:], alone[:, 1:])
        assert len(part) == len(alone)


def test_groups_partition_the_tokens_and_never_mix_clips() -> None:
    layout = TokenLayout.pack((TokenGrid(2, 3, 3), TokenGrid(3, 2, 5)))
    groups = layout.groups(lambda c, _: c[:, 1:] // 2, "halves")
    flat = torch.cat([s.flatten() for s in groups.segments])
    assert groups.ends.diff().tolist() == [len(group) for s in groups.segments for group in s]
    assert torch.equal(flat.sort().values, torch.arange(layout.total))
    coordinates = layout.coordinates()
    for segment in groups.segments:
        for row in segment:
            assert len((coordinates[row] // torch.tensor([1, 2, 2, 2])).unique(dim=0)) == 1
    assert groups.pairs == sum(s.shape[0] * s.shape[1] ** 2 for s in groups.segments)
    assert layout.groups(lambda c, _: c[:, 1:] // 2, "halves") is groups


def test_mixed_grids_must_be_packed() -> None:
    with pytest.raises(SoraError, match="pack"):
        TokenLayout((TokenGrid(1, 1, 1), TokenGrid(1, 1, 2)))


@pytest.mark.parametrize("sizes", [[(9, 16, 24)] * 3, [(9, 16, 24), (1, 8, 8), (5, 32, 8)]])
@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_a_batch_holds_each_clip_once_and_cuts_it_where_rows_are_asked_for(
    sizes: list[tuple[int, int, int]], space: Any
) -> None:
    patch, numbers = PatchSize(4, 8, 8), torch.Generator().manual_seed(0)
    clips = [torch.randint(0, 256, (*size, 3), dtype=torch.uint8, generator=numbers) for size in sizes]
    clips = clips if space == "pixel" else [clip.float() / 7 for clip in clips]
    names, zeros = tuple("abc"), (0,) * 3
    layout = TokenLayout(tuple(TokenGrid.of(*size, patch) for size in sizes), packed=len(set(sizes)) > 1)
    known: dict[str, Any] = {"patch": patch, "captions": names, "ids": names, "visits": zeros, "fps": (8.0,) * 3}
    batch = SpacetimeBatch.of(clips, layout=layout, space=space, **known)
    assert batch.content.numel() == sum(clip.numel() for clip in clips)
    assert all(map(torch.equal, batch.videos(), clips))
    assert torch.equal(batch.patches, layout.join([patchify(clip, patch) for clip in clips]))
    some = batch.select([2, 0])
    assert some.ids == ("c", "a")
    assert all(map(torch.equal, some.videos(), (clips[2], clips[0])))
    for places, part in batch.split_by_grid():
        assert all(torch.equal(video, clips[place]) for place, video in zip(places, part.videos(), strict=True))
    with pytest.raises(SoraError, match="does not hold"):
        SpacetimeBatch.of([*clips[:2], clips[2][:, :3]], layout=layout, space=space, **known)
    if space == "pixel":
        with pytest.raises(SoraError, match="uint8"):
            SpacetimeBatch.of([clip.float() for clip in clips], layout=layout, **known)
