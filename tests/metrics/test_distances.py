"""Distances as metrics: any partition of the clips over batches, orders and processes gives the same."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from sklearn.metrics.pairwise import polynomial_kernel as sklearn_kernel

from lightning_sora.errors import SoraError
from lightning_sora.metrics.distances import FrechetVideoDistance, JEDi, KernelVideoDistance
from lightning_sora.metrics.extractors.base import Extractor
from lightning_sora.metrics.frechet import Moments, clip_hash
from lightning_sora.metrics.kernel import jedi_distance, kernel_distance, kernel_estimate
from lightning_sora.metrics.reference import ReferenceStatistics

WIDTH = 6


class Means(Extractor):
    """Mean colour of the first and the last frame."""

    title, width = "means", WIDTH

    def prepare(self, clip: torch.Tensor) -> torch.Tensor:
        return clip.movedim(-1, 0).float() / 255

    def features(self, clips: torch.Tensor) -> torch.Tensor:
        return torch.cat([clips[:, :, 0].mean((-1, -2)), clips[:, :, -1].mean((-1, -2))], dim=1)

    def describe(self) -> dict:
        return {"name": "means", "weights": "none", "verified": False}


def clips(count: int, seed: int) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    tone = rng.integers(0, 200, (count, 1, 1, 1, 3))
    return list(torch.from_numpy((tone + rng.integers(0, 55, (count, 4, 5, 6, 3))).astype(np.uint8)))


def scores(
    real: list, generated: list, split: list[tuple[slice, slice]], group: dist.ProcessGroup | None = None
) -> dict[str, float]:
    found = {}
    for name, metric in (
        ("fvd", FrechetVideoDistance(Means(), expected=len(real))),
        ("kvd", KernelVideoDistance(Means())),
        ("jedi", JEDi(Means())),
    ):
        metric.process_group = group
        for of_real, of_generated in split:
            metric.update(real[of_real], [f"r{i}" for i in range(len(real))][of_real], real=True)
            metric.update(generated[of_generated], [f"g{i}" for i in range(len(generated))][of_generated], real=False)
        found |= {f"{name}_{key}": float(value) for key, value in metric.compute().items()}
    return found


EMPTY = slice(0, 0)
SHARES = {
    2: [(slice(0, 31), slice(0, 80)), (slice(31, 80), EMPTY)],
    3: [(slice(0, 50), slice(0, 3)), (EMPTY, EMPTY), (slice(50, 80), slice(3, 80))],
}


def one_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=3)
    torch.set_num_threads(1)
    two = dist.new_group([0, 1])  # every rank must take part in making it
    for world, group in ((2, two), (3, None)):
        if rank < world:
            found = scores(clips(80, 0), clips(80, 1), [SHARES[world][rank]], group)
            Path(folder, f"{world}-{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def test_uneven_and_empty_ranks_give_what_one_process_gives(tmp_path: Path) -> None:
    mp.spawn(one_rank, args=(str(tmp_path),), nprocs=3)
    alone = scores(clips(80, 0), clips(80, 1), [(slice(None), slice(None))])
    for world in SHARES:
        for rank in range(world):
            found = json.loads((tmp_path / f"{world}-{rank}.json").read_text())
            assert found == pytest.approx(alone, rel=1e-9, abs=1e-12)


def test_batches_and_order_change_nothing() -> None:
    real, generated = clips(60, 0), clips(60, 1)
    alone = scores(real, generated, [(slice(None), slice(None))])
    batches = [(slice(i, i + 7), slice(i, i + 7)) for i in range(0, 60, 7)]
    assert scores(real, generated, batches) == pytest.approx(alone, rel=1e-9, abs=1e-12)
    assert scores(real, generated, batches[::-1]) == pytest.approx(alone, rel=1e-9, abs=1e-12)


def test_clips_of_mixed_sizes_are_taken() -> None:
    metric = FrechetVideoDistance(Means())
    mixed = [torch.full((t, h, 8, 3), v, dtype=torch.uint8) for t, h, v in ((2, 4, 10), (5, 9, 90), (2, 4, 200))]
    metric.update(mixed, ["a", "b", "c"], real=True)
    moments = metric.groups("real")
    assert sum(g.count for g in moments) == 3
    assert sum(g.total for g in moments)[0] == pytest.approx((10 + 90 + 200) / 255, rel=1e-6)


def test_a_clip_given_twice_and_a_missing_one_are_refused() -> None:
    metric = FrechetVideoDistance(Means(), expected=20)
    real = clips(20, 0)
    metric.update(real, [f"r{i}" for i in range(20)], real=True)
    metric.update([*real[:19], real[3]], [*(f"g{i}" for i in range(19)), "g3"], real=False)
    with pytest.raises(SoraError, match="1 of 20 generated clips were given more than once"):
        metric.compute()
    short = FrechetVideoDistance(Means(), expected=20)
    short.update(real[:19], [f"r{i}" for i in range(19)], real=True)
    with pytest.raises(SoraError, match="19 real clips were given where 20"):
        short.compute()


def test_bad_pixels_and_features_are_refused() -> None:
    metric = FrechetVideoDistance(Means())
    with pytest.raises(SoraError, match=r"torch.float32 .* display values 0 to 255"):
        metric.update([torch.rand(4, 5, 6, 3)], ["a"], real=True)
    with pytest.raises(SoraError, match="width is 6"):
        metric.add(torch.zeros(2, 5), ["a", "b"], real=True)


def test_reset_keeps_the_reference() -> None:
    real, generated = clips(64, 0), clips(64, 1)
    live = FrechetVideoDistance(Means())
    live.update(real, [f"r{i}" for i in range(64)], real=True)
    fields = {"extractor": Means().card(), "clip": {"frames": 4}}
    ids = torch.tensor([clip_hash(f"r{i}") for i in range(64)]).sort().values
    reference = ReferenceStatistics(live.groups("real"), ids, fields)
    live.update(generated, [f"g{i}" for i in range(64)], real=False)
    kept = FrechetVideoDistance(Means(), reference=reference)
    for _ in range(2):
        kept.reset()
        kept.update(generated, [f"g{i}" for i in range(64)], real=False)
        assert float(kept.compute()["value"]) == pytest.approx(float(live.compute()["value"]), rel=1e-12)
    assert not kept.state_dict()
    with pytest.raises(SoraError, match="generated clips only"):
        kept.update(real, [f"r{i}" for i in range(64)], real=True)


def test_reference_statistics_are_verified_and_merged(tmp_path: Path) -> None:
    def of(names: list[str], seed: int, frames: int = 4) -> ReferenceStatistics:
        metric = FrechetVideoDistance(Means())
        metric.update(clips(len(names), seed), names, real=True)
        ids = torch.tensor([clip_hash(n) for n in names]).sort().values
        return ReferenceStatistics(metric.groups("real"), ids, {"extractor": Means().card(), "frames": frames})

    first, second = of([f"a{i}" for i in range(9)], 0), of([f"b{i}" for i in range(5)], 1)
    path = first.save(tmp_path, "train")
    again = ReferenceStatistics.load(path)
    assert again.digest == first.digest
    assert again.card.id == first.card.id
    assert json.loads(path.with_suffix(".json").read_text())["clips"] == 9
    whole = FrechetVideoDistance(Means())
    whole.update(clips(9, 0), [f"a{i}" for i in range(9)], real=True)
    whole.update(clips(5, 1), [f"b{i}" for i in range(5)], real=True)
    for merged, expected in zip(first.merge(second).groups, whole.groups("real"), strict=True):
        assert merged.count == expected.count
        assert torch.allclose(merged.outer, expected.outer)
    with pytest.raises(SoraError, match="9 clips are in both"):
        first.merge(first)
    with pytest.raises(SoraError, match="frames: 4 against 8"):
        first.merge(of(["c"], 2, frames=8))

    damaged = bytearray(path.read_bytes())
    damaged[-3] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(SoraError, match="not the one in its name"):
        ReferenceStatistics.load(path)
    (tmp_path / "other.safetensors").write_bytes(b"nonsense")
    with pytest.raises(SoraError, match="cannot be read"):
        ReferenceStatistics.load(tmp_path / "other.safetensors")
    with pytest.raises(SoraError, match="no reference statistics"):
        ReferenceStatistics.load(tmp_path / "none.safetensors")


def test_a_reference_of_another_extractor_is_refused() -> None:
    reference = ReferenceStatistics(
        [Moments.of(torch.rand(4, WIDTH))], torch.arange(4), {"extractor": {**Means().card(), "weights": "other"}}
    )
    with pytest.raises(SoraError, match=r"extractor.weights: 'other' against 'none'"):
        FrechetVideoDistance(Means(), reference=reference)


def test_point_masses_have_a_closed_form() -> None:
    a, b = torch.tensor([1.0, 2.0, 0.0]).double(), torch.tensor([0.5, -1.0, 3.0]).double()
    k = lambda x, y: float((x @ y / 3 + 1) ** 3)  # noqa: E731
    found = kernel_distance(a.repeat(4, 1), b.repeat(6, 1))
    assert float(found) == pytest.approx(k(a, a) + k(b, b) - 2 * k(a, b), rel=1e-12)


def test_the_kernel_distance_is_the_sum_over_pairs() -> None:
    x, y = (torch.from_numpy(np.random.RandomState(s).randn(n, 5)) for s, n in ((0, 12), (1, 9)))
    kxx, kyy, kxy = (sklearn_kernel(p, q, degree=3) for p, q in ((x, x), (y, y), (x, y)))
    pairs = [kxx[i, j] for i in range(12) for j in range(12) if i != j]
    others = [kyy[i, j] for i in range(9) for j in range(9) if i != j]
    assert float(kernel_distance(x, y)) == pytest.approx(np.mean(pairs) + np.mean(others) - 2 * kxy.mean(), rel=1e-12)


def test_the_kernel_distance_of_equal_distributions_is_centred_on_zero() -> None:
    values = []
    for trial in range(100):
        x, y = (torch.from_numpy(np.random.RandomState(2 * trial + s).randn(40, 4)) for s in (0, 1))
        values.append(float(kernel_distance(x, y)))
    assert abs(np.mean(values)) < 3 * np.std(values) / 10
    covered = 0
    for trial in range(60):
        x, y = (torch.from_numpy(np.random.RandomState(500 + 2 * trial + s).randn(40, 4)) for s in (0, 1))
        estimate = kernel_estimate(x, y)
        covered += estimate.low <= 0 <= estimate.high
    assert covered >= 60 * 0.95 - 3 * (60 * 0.95 * 0.05) ** 0.5


def test_pairs_are_not_compared_with_themselves() -> None:
    """Reconstructions that are nearly the clips: the same distribution, and no distance on average."""
    values, naive = [], []
    for trial in range(100):
        x = torch.from_numpy(np.random.RandomState(trial).randn(40, 4))
        y = 0.9 * x + (1 - 0.81) ** 0.5 * torch.from_numpy(np.random.RandomState(7000 + trial).randn(40, 4))
        values.append(float(kernel_distance(x, y, paired=True)))
        naive.append(float(kernel_distance(x, y)))
    assert abs(np.mean(values)) < 3 * np.std(values) / 10
    assert np.mean(naive) < -3 * np.std(naive) / 10
    with pytest.raises(SoraError, match="as many of both"):
        kernel_distance(torch.zeros(3, 2), torch.zeros(4, 2), paired=True)


@pytest.mark.parametrize("paired", [False, True])
def test_the_kernels_interval_leaves_out_one_clip_after_the_other(paired: bool) -> None:
    x, y = (torch.from_numpy(np.random.RandomState(s).randn(n, 4)) for s, n in ((0, 14), (1, 14 if paired else 9)))
    value = float(kernel_distance(x, y, paired=paired))
    without = lambda side, i: torch.cat([side[:i], side[i + 1 :]])  # noqa: E731
    if paired:
        left = [float(kernel_distance(without(x, i), without(y, i), paired=True)) for i in range(14)]
        variance = 13 / 14 * np.square(np.array(left) - np.mean(left)).sum()
    else:
        sides = [
            [float(kernel_distance(without(x, i), y)) for i in range(14)],
            [float(kernel_distance(x, without(y, i))) for i in range(9)],
        ]
        variance = sum((len(s) - 1) / len(s) * np.square(np.array(s) - np.mean(s)).sum() for s in sides)
    found = kernel_estimate(x, y, paired=paired)
    assert found.value == value
    assert found.stderr == pytest.approx(variance**0.5, rel=1e-9)
    assert found.unbiased == pytest.approx(value, rel=1e-9), "without bias, the jackknife corrects nothing"


def test_pairs_of_a_kernel_distance_are_asked_for_not_guessed_from_names() -> None:
    real, made = torch.randn((2, 12, WIDTH), generator=torch.Generator().manual_seed(0))

    def value(names: list[str], **options: bool) -> float:
        metric = KernelVideoDistance(Means(), **options)
        metric.add(real, [f"{i}" for i in range(12)], real=True)
        metric.add(made, names, real=False)
        return float(metric.compute()["value"])

    same, others = [f"{i}" for i in range(12)], [f"g{i}" for i in range(12)]
    assert value(same) == pytest.approx(value(others), rel=1e-12)
    assert value(same) == pytest.approx(float(kernel_distance(real, made)), rel=1e-12)
    assert value(same, paired=True) == pytest.approx(float(kernel_distance(real, made, paired=True)), rel=1e-12)
    with pytest.raises(SoraError, match="the same ids on both sides"):
        value(others, paired=True)


def test_jedi_equals_its_published_example_and_the_kernel_form() -> None:
    a = torch.arange(1, 10).double().reshape(3, 3)
    b = torch.tensor([[7, 6, 5], [4, 3, 2], [1, 1, 8], [0, 2, 5]]).double()
    x, y = (np.random.RandomState(s).randn(n, 7) for s, n in ((0, 30), (1, 20)))
    kernel = lambda p, q: sklearn_kernel(p, q, degree=2, gamma=1 / 7, coef0=0).mean()  # noqa: E731
    expected = 100 * (kernel(x, x) + kernel(y, y) - 2 * kernel(x, y))
    got = jedi_distance(Moments.of(torch.from_numpy(x)), Moments.of(torch.from_numpy(y)))
    assert float(got) == pytest.approx(expected, rel=1e-12)
    assert float(jedi_distance(Moments.of(a), Moments.of(b))) == pytest.approx(
        100 * 270.7222, abs=1e-2
    )  # the example is not scaled
