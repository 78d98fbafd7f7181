"""The batch plan: every clip once, one integer to resume by, the same stream for any number of ranks."""

import itertools
from collections import Counter
from typing import Any

import pytest
import torch

from lightning_sora.data.packing import cost
from lightning_sora.data.plan import BatchPlan, PlannedBatch, PlanSampler
from lightning_sora.data.sizes import SIZES, Limits
from lightning_sora.data.sources import SOURCES, ClipInfo
from lightning_sora.data.sources.mixture import apportion
from lightning_sora.errors import SoraError
from lightning_sora.randomness import generator
from lightning_sora.spacetime import Crop, PatchSize, VideoSize

PATCH = PatchSize(4, 8, 8)
MIX = "mixture(sources={'clips': \"world(clips=12, heldout_clips=4)\", 'more': \"world(level='simple', clips=5)\"}"
POLICIES = ["fixed", "bucketed(keep={(32, 17): 0.5})", "packed(lookahead=4)"]


def clips(count: int) -> list[ClipInfo]:
    return [ClipInfo(f"c{i}", 1 + 4 * (i % 5), 32 + 8 * (i % 3), 32 + 16 * (i % 2), 8.0) for i in range(count)]


def plan(policy: str, count: int = 29, seed: int = 1, batch_size: int = 2, **options: Any) -> BatchPlan:
    infos = clips(count)

    def order(epoch: int) -> list[tuple[int, int]]:
        drawn = torch.randperm(count, generator=generator(seed, "order", epoch)).tolist()
        return [(index, epoch) for index in drawn]

    limits = Limits(17, 32, 32, PATCH, batch_size)
    return BatchPlan(infos, SIZES.create(policy, limits), fps=None, seed=seed, **{"order": order, **options})


def visits(batches: list[PlannedBatch]) -> Counter[tuple[int, int]]:
    return Counter(pair for batch in batches for pair in zip(batch.clips, batch.visits, strict=True))


@pytest.mark.parametrize("policy", POLICIES)
def test_every_clip_is_in_exactly_one_batch_of_an_epoch(policy: str) -> None:
    found = plan(policy)
    assert visits(found.epoch(0)) == Counter((i, 0) for i in range(29))
    assert visits(found.epoch(3)) == Counter((i, 3) for i in range(29))
    assert plan(policy).epoch(3) == found.epoch(3)
    assert [b.clips for b in found.epoch(1)] != [b.clips for b in found.epoch(0)]
    if policy != "packed(lookahead=4)":
        assert all(len(set(batch.grids)) == 1 for batch in found.epoch(0))


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_ranks_share_the_stream_of_one(policy: str, ranks: int) -> None:
    epochs = plan(policy)
    stream = list(itertools.islice(epochs.stream(0), 20 * ranks))
    dealt = [list(itertools.islice(_endless(PlanSampler(plan(policy), rank=r, ranks=ranks)), 20)) for r in range(ranks)]
    assert [b for step in zip(*dealt, strict=True) for b in step] == stream
    # So each clip is seen once per epoch, whatever the number of ranks.
    first = len(epochs.epoch(0))
    assert visits(stream[:first]) == Counter((i, 0) for i in range(29))


def test_ranks_take_equally_many_steps_in_training_and_each_clip_once_in_evaluation() -> None:
    for ranks in (2, 3, 4):
        train = [list(PlanSampler(plan("fixed"), rank=r, ranks=ranks)) for r in range(ranks)]
        assert len({len(t) for t in train}) == 1
        judged = [list(PlanSampler(plan("fixed", order=None), rank=r, ranks=ranks)) for r in range(ranks)]
        assert visits([b for t in judged for b in t]) == Counter((i, 0) for i in range(29))
        assert sum(len(PlanSampler(plan("fixed", order=None), rank=r, ranks=ranks)) for r in range(ranks)) == sum(
            map(len, judged)
        )


@pytest.mark.parametrize("policy", POLICIES)
def test_evaluation_leaves_no_rank_without_clips(policy: str) -> None:
    few = plan(policy, count=7, order=None, batch_size=64)
    assert len(few.epoch(0)) < 7
    judged = [list(PlanSampler(few, rank=r, ranks=7)) for r in range(7)]
    assert all(judged)
    assert visits([b for t in judged for b in t]) == Counter((i, 0) for i in range(7))
    with pytest.raises(SoraError, match="7 clips to evaluate cannot be dealt to 8 ranks") as refused:
        PlanSampler(few, rank=0, ranks=8)
    for remedy in ("trainer.devices to at most 7", "hold out 8 clips", "trainer.limit_val_batches=0"):
        assert remedy in str(refused.value)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("consumed", [0, 3, 7, 8, 19, 41])
def test_progress_of_one_integer_finds_the_next_batch(policy: str, consumed: int) -> None:
    whole = list(itertools.islice(plan(policy).stream(0), 60))
    resumed = list(itertools.islice(plan(policy).stream(consumed), 60 - consumed))
    assert resumed == whole[consumed:]


@pytest.mark.parametrize("policy", POLICIES)
def test_a_stretch_begins_at_what_was_used_not_at_what_was_fetched(policy: str) -> None:
    used = 0
    sampler = PlanSampler(plan(policy), consumed=lambda: used)
    fetched = iter(sampler)
    ahead = [next(fetched) for _ in range(4)]  # workers fetch four, training stops after two
    used = 2
    assert next(iter(sampler)) == ahead[2]


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (2, 4), (4, 3)])
def test_the_number_of_ranks_may_change_in_mid_epoch(before: int, after: int) -> None:
    steps = 3
    seen: list[PlannedBatch] = []
    for ranks, start in ((before, 0), (after, steps * before)):
        samplers = [
            _endless(PlanSampler(plan("packed"), rank=r, ranks=ranks, consumed=lambda start=start: start))
            for r in range(ranks)
        ]
        count = steps if ranks == before and not start else 4
        seen += [next(sampler) for _ in range(count) for sampler in samplers]
    assert seen == list(itertools.islice(plan("packed").stream(0), len(seen)))


def test_an_epoch_in_which_no_clip_is_kept_is_an_error() -> None:
    starved = plan("bucketed(frames=(1,), keep={(32, 1): 0.0001})", count=3, seed=5)
    with pytest.raises(SoraError, match="epoch 0 has no batch"):
        next(starved.stream(0))
    with pytest.raises(SoraError, match="epoch 0 has no batch"):  # a loader of no length would train nothing
        PlanSampler(starved)


def test_what_chance_leaves_out_is_counted() -> None:
    drawn = plan("bucketed(frames=(1, 5), keep={(32, 1): 0.5, (32, 5): 0.5})", count=400)
    for epoch in (0, 1):
        used = sum(len(batch.clips) for batch in drawn.epoch(epoch))
        assert drawn.unkept(epoch) == 400 - used
        assert 100 < drawn.unkept(epoch) < 250
    assert plan("packed").unkept(0) == 0


def test_the_steps_of_all_ranks_cost_alike_in_later_epochs_too() -> None:
    """The stream is cut into steps at its own multiples, and epochs end anywhere."""
    balanced = plan("bucketed(frames=(1, 5, 9, 17))", count=1003, batch_size=2)
    lengths = [len(balanced.epoch(epoch)) for epoch in range(4)]
    assert any(sum(lengths[:epoch]) % 8 for epoch in range(4))
    stream = list(itertools.islice(balanced.stream(0), sum(lengths) // 8 * 8))
    costs = [cost([grid.tokens for grid in batch.grids]) for batch in stream]
    steps = [costs[k : k + 8] for k in range(0, len(costs), 8)]
    for epoch in range(4):
        some = steps[sum(lengths[:epoch]) // 8 : sum(lengths[: epoch + 1]) // 8]
        idle = 1 - sum(map(sum, some)) / sum(8 * max(step) for step in some)
        assert idle < 0.05, (epoch, idle)
    for first, length in zip((sum(lengths[:e]) for e in range(3)), lengths, strict=False):
        epoch_visits = visits(stream[first : first + length])
        assert len(epoch_visits) == 1003
        assert set(epoch_visits.values()) == {1}


def test_a_mixture_gives_each_source_its_share_and_goes_round_each_evenly() -> None:
    source: Any = SOURCES.create(
        f"{MIX}, weights={{'clips': 1, 'more': 3}}, clips=16)", root=None, split="train", seed=0
    )
    assert source.visits == {"clips": 4, "more": 12}
    seen: Counter[tuple[str, int]] = Counter()
    for epoch in range(5):
        members = source.order(7, epoch)
        names = Counter(source.infos[index].source for index, _ in members)
        assert names == {"clips": 4, "more": 12}
        seen.update((source.infos[index].id, visit) for index, visit in members)
    assert set(seen.values()) == {1}  # no clip twice at one visit
    counts = Counter(clip_id for clip_id, _ in seen)
    more = [counts[i.id] for i in source.infos if i.source == "more"]
    few = [counts[i.id] for i in source.infos if i.source == "clips"]
    assert (sum(more), max(more) - min(more)) == (60, 0)  # 5 clips, 12 rounds
    assert (sum(few), max(few) - min(few)) == (20, 1)
    assert source.order(7, 2) == source.order(7, 2) != source.order(8, 2)


def test_a_mixture_loads_what_its_sources_load() -> None:
    both: Any = SOURCES.create(f"{MIX})", root=None, split="train", seed=3)
    alone = SOURCES.create("world(level='simple', clips=5)", root=None, split="train", seed=3)
    index = next(i for i, info in enumerate(both.infos) if info.id == "more/train-2")
    crop = Crop(VideoSize(5, 16, 16))
    one, other = (s.load(i, crop, generator=torch.Generator()) for s, i in ((both, index), (alone, 2)))
    assert torch.equal(one.video, other.video)
    assert both.fingerprint() != SOURCES.create(f"{MIX}, clips=4)", root=None, split="train", seed=3).fingerprint()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("weights={'clips': 1}", "weights="),
        ("weights={'clips': 1, 'more': 0}", "positive"),
        ("clips=1", "at least one for each"),
    ],
)
def test_impossible_mixtures_are_refused(options: str, words: str) -> None:
    with pytest.raises(SoraError, match=words):
        SOURCES.create(f"{MIX}, {options})", root=None, split="train", seed=0)


def test_shares_become_whole_numbers_that_sum() -> None:
    assert apportion({"a": 1, "b": 1, "c": 1}, 10) == {"a": 4, "b": 3, "c": 3}
    assert apportion({"a": 0.001, "b": 1}, 10) == {"a": 1, "b": 9}
    assert sum(apportion({str(i): i + 1 for i in range(7)}, 100).values()) == 100


def _endless(sampler: PlanSampler) -> Any:
    """Stretch after stretch; with a fixed start, the stream that the first stretch begins."""
    if sampler.consumed is not None:
        return itertools.islice(sampler.plan.stream(sampler.consumed()), sampler.rank, None, sampler.ranks)
    return itertools.chain.from_iterable(iter(sampler) for _ in itertools.count())
