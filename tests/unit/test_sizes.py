"""Size policies: which grid a clip gets, and that nothing is dropped in silence."""

import math
import random
from collections import Counter
from typing import Any

import pytest
import torch

from lightning_sora.data.packing import balanced_order, cost, pack
from lightning_sora.data.plan import BatchPlan
from lightning_sora.data.sizes import SIZES, Limits
from lightning_sora.data.sources import ClipInfo
from lightning_sora.errors import SoraError
from lightning_sora.spacetime import PatchSize, TokenGrid

PATCH = PatchSize(4, 8, 8)
LIMITS = Limits(17, 32, 32, PATCH, batch_size=4)  # 5 x 4 x 4 = 80 tokens a clip, 320 a batch


def info(frames: int, height: int, width: int, fps: float = 8.0, name: str = "x") -> ClipInfo:
    return ClipInfo(name, frames, height, width, fps)


def size_of(spec: str, clip: ClipInfo, fps: float | None = None) -> Any:
    grid = SIZES.create(spec, LIMITS).grid(clip, fps)
    return grid if isinstance(grid, str) else grid.size(PATCH)


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
@pytest.mark.parametrize("spec", ["fixed", "packed"])
def test_short_clips_are_used_at_the_length_that_they_fill(
    spec: str, frames: int, fps: float, rate: float | None, used: int
) -> None:
    assert size_of(spec, info(frames, 32, 32, fps), rate) == (used, 32, 32)


def test_packed_keeps_aspect_and_size_up_to_the_area_and_never_enlarges() -> None:
    assert size_of("packed", info(17, 16, 24)) == (17, 16, 24)
    assert size_of("packed", info(17, 19, 31)) == (17, 16, 24)  # down to whole patches
    assert size_of("packed", info(17, 7, 31)) == "smaller than a patch"
    for height, width in ((1080, 1920), (1920, 1080), (500, 500), (300, 900)):
        _, used_height, used_width = size_of("packed", info(17, height, width))
        assert used_height * used_width <= 32 * 32
        # Within one patch of the clip's own aspect at that area.
        ideal = 32 * math.sqrt(height / width), 32 * math.sqrt(width / height)
        assert 0 <= ideal[0] - used_height < 8 + 1e-6
        assert 0 <= ideal[1] - used_width < 8 + 1e-6
    assert size_of("packed(area=4096)", info(17, 1080, 1080)) == (17, 64, 64)
    assert size_of("packed(tokens=40)", info(17, 32, 32)) == (5, 32, 32)  # 2 rows of 16 tokens fit
    assert size_of("packed(tokens=15)", info(17, 32, 32)) == "one frame exceeds the budget of tokens"


def test_a_clip_goes_to_the_largest_bucket_that_it_fills() -> None:
    spec = "bucketed(frames=(1, 9, 17), resolutions=(16, 32), aspects=('1:1', '1:2'), tokens=640)"
    assert size_of(spec, info(300, 1000, 1000)) == (17, 32, 32)
    assert size_of(spec, info(16, 1000, 1000)) == (9, 32, 32)
    assert size_of(spec, info(16, 20, 20)) == (9, 16, 16)
    assert size_of(spec, info(1, 500, 1000)) == (1, 24, 48)  # 32 / sqrt 2 and 32 sqrt 2, to whole patches
    assert size_of(spec, info(16, 10, 10)) == "smaller than the smallest bucket"
    assert size_of("bucketed(frames=(9, 17))", info(1, 500, 500)) == "shorter than the shortest bucket"


def test_defaults_of_bucketed_come_from_the_recipe() -> None:
    policy: Any = SIZES.create("bucketed", LIMITS)
    assert sorted({frames for _, frames in policy.table}) == [1, 5, 9, 17]
    assert policy.budget == 320
    assert size_of("bucketed", info(17, 32, 32)) == (17, 32, 32)


def test_keep_probability_sends_the_rest_to_smaller_buckets() -> None:
    spec = "bucketed(frames=(9, 17), resolutions=(32,), keep={(32, 17): 0.25}, tokens=640)"
    policy = SIZES.create(spec, LIMITS)
    drawn = Counter(policy.draw(info(17, 32, 32, name=f"clip{i}"), None, 0, 0).frames for i in range(2000))  # type: ignore[union-attr]
    # Five standard deviations of 2,000 draws.
    assert abs(drawn[5] / 2000 - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 2000)
    assert drawn[5] + drawn[3] == 2000
    again = [policy.draw(info(17, 32, 32, name="clip7"), None, 0, visit) for visit in range(20)]
    assert again == [policy.draw(info(17, 32, 32, name="clip7"), None, 0, visit) for visit in range(20)]
    assert len(set(again)) == 2  # a new draw at each visit


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("bucketed(frames=(1, 49), tokens=9999)", ["49 frames", "gets no clip", "longest has 17"]),
        ("bucketed(resolutions=(32, 512), tokens=99999)", ["resolution 512", "gets no clip"]),
        ("bucketed(frames=(17,), resolutions=(32,), keep={(32, 17): 0.0})", ["gets no clip"]),
        ("bucketed(tokens=10)", ["batches of no clip", "budget of 10"]),
        ("bucketed(frames=(6,))", ["frames=6", "5 or 9"]),
        ("bucketed(aspects=('wide',))", ["'wide'", "h:w"]),
        ("bucketed(keep={(31, 17): 0.5})", ["(31, 17)", "must name"]),
        ("bucketed(keep={(32, 17): 1.5})", ["share"]),
        ("packed(tokens=0)", ["tokens=0"]),
        ("packed(lookahead=0)", ["lookahead=0"]),
        ("packed(tokens=3)", ["none of 6 clips", "exceeds the budget"]),
        ("bucket", ["unknown size policy", "bucketed"]),
        ("packed(budget=3)", ["does not accept 'budget'", "tokens"]),
    ],
)
def test_what_cannot_be_had_is_refused_at_the_start_with_its_reason(spec: str, words: list[str]) -> None:
    infos = [info(17, 40, 40, name=f"c{i}") for i in range(6)]
    with pytest.raises(SoraError) as caught:
        BatchPlan(infos, SIZES.create(spec, LIMITS), fps=None, seed=0, order=lambda e: [(i, e) for i in range(6)])
    assert all(word in str(caught.value) for word in words), caught.value


def test_clips_that_cannot_be_used_are_counted_with_the_reason() -> None:
    infos = [info(17, 40, 40, name="good"), info(17, 4, 40, name="flat"), info(17, 40, 5, name="thin")]
    plan = BatchPlan(infos, SIZES.create("packed", LIMITS), fps=None, seed=0)
    assert plan.usage.dropped == {"smaller than a patch": ["flat", "thin"]}
    assert plan.usage.dropped_clips == 2
    assert [batch.clips for batch in plan.epoch(0)] == [(0,)]


@pytest.mark.parametrize("lookahead", [1, 8, 64])
@pytest.mark.parametrize("seed", range(3))
def test_packing_holds_every_clip_once_within_the_budget(seed: int, lookahead: int) -> None:
    rng = random.Random(seed)
    lengths = [rng.randint(1, 100) for _ in range(300)]
    sequences = pack(lengths, 100, lookahead)
    assert Counter(i for members in sequences for i in members) == Counter(range(300))
    assert all(sum(lengths[i] for i in members) <= 100 for members in sequences)
    if lookahead == 64:  # the bound that first-fit-decreasing has for all clips at once (Johnson 1973)
        assert len(sequences) <= 11 / 9 * math.ceil(sum(lengths) / 100) + 1


def test_packing_is_perfect_where_that_is_easy_and_bounded_waits_lose_no_clip() -> None:
    assert [sorted(s) for s in pack([60, 40, 70, 30, 50, 50], 100, 6)] == [[0, 1], [2, 3], [4, 5]]
    assert pack([3, 3, 3], 3, 1) == [(0,), (1,), (2,)]
    # A long clip opens its sequence no later than the wait of the others allows.
    firsts = [min(members) for members in pack([90] * 50 + [95] * 50, 100, 8)]
    assert all(place <= turn + 8 for turn, place in enumerate(firsts))
    with pytest.raises(SoraError, match="101 tokens exceeds the budget of 100"):
        pack([5, 101], 100, 4)


def test_neighbours_of_the_balanced_order_cost_alike() -> None:
    rng = random.Random(0)
    costs = [cost([rng.choice([36, 144, 400, 1440])] * rng.randint(1, 4)) for _ in range(512)]
    order = balanced_order(costs, torch.Generator().manual_seed(0), 8)
    assert sorted(order) == list(range(512))

    def idle(places: list[int]) -> float:
        """The share of 8 ranks' time that is spent in waiting for the slowest."""
        steps = [[costs[i] for i in places[k : k + 8]] for k in range(0, 512, 8)]
        return 1 - sum(map(sum, steps)) / sum(8 * max(step) for step in steps)

    assert idle(list(range(512))) > 0.4
    assert idle(order) < 0.1
    groups = [order[k : k + 8] for k in range(0, 512, 8)]
    means = [sum(costs[i] for i in group) for group in groups]
    assert means != sorted(means)  # groups come in a drawn order
    assert balanced_order([2.0] * 10, torch.Generator(), 8) == list(range(10))
    assert balanced_order([1.0, 2.0, 1.0], None, 1) == [0, 1, 2]


def test_the_cost_of_a_clip_is_that_of_a_layer() -> None:
    # 24 d^2 L + 4 d L^2 with d = 2, L = 3, in units of 4 d.
    assert cost([3], dim=2) == (24 * 4 * 3 + 4 * 2 * 9) / 8
    assert cost([3, 5]) == cost([3]) + cost([5])


def test_grids_of_a_packed_batch_are_the_clips_own() -> None:
    infos = [info(1 + 4 * (i % 5), 16 + 8 * (i % 3), 32, name=f"c{i}") for i in range(40)]
    plan = BatchPlan(
        infos, SIZES.create("packed", LIMITS), fps=None, seed=0, order=lambda e: [(i, e) for i in range(40)]
    )
    for batch in plan.epoch(0):
        assert batch.packed
        assert batch.tokens <= batch.budget == 320
        for index, grid in zip(batch.clips, batch.grids, strict=True):
            own = infos[index]
            assert grid == TokenGrid.of(own.frames, own.height, own.width, PATCH)


@pytest.mark.parametrize("keep", ["0.5", "{17: 0.5}", "{(32, 17): 'half'}"])
def test_shares_of_another_form_are_told_what_form_they_have(keep: str) -> None:
    with pytest.raises(SoraError, match=r"shares by \(resolution, frames\), as in \{\(32, 17\): 0.5\}"):
        SIZES.create(f"bucketed(keep={keep})", LIMITS)
