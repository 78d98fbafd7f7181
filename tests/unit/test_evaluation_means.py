"""Means of an evaluation are those over all clips, however they are dealt."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_sora.lit.evaluation_means import EvaluationMeans
from lightning_sora.randomness import generator


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("size", [1, 2, 5])
def test_batches_and_ranks_change_no_mean(ranks: int, size: int) -> None:
    values = torch.rand(17, generator=generator(0, "values"), dtype=torch.float64)
    everyone = [EvaluationMeans() for _ in range(ranks)]
    for turn, batch in enumerate(values.split(size)):
        everyone[turn % ranks].add("val/loss", batch)
        everyone[turn % ranks].add(f"val/loss_{turn % 2}", batch[:1])
    found = EvaluationMeans.over([one.sums for one in everyone])
    assert found["val/loss"] == pytest.approx(float(values.mean()), rel=1e-12)
    assert found["val/loss_0"] == pytest.approx(float(values[::size][::2].mean()), rel=1e-12)


@pytest.mark.parametrize(("sizes", "parts"), [(["5x16x16"], []), (["5x16x16", "9x16x16"], [1.0, 2.0])])
def test_a_part_that_is_the_whole_has_no_name_of_its_own(sizes: list[str], parts: list[float]) -> None:
    logged: dict[str, float] = {}
    module: Any = SimpleNamespace(
        trainer=SimpleNamespace(world_size=1), log=lambda name, value, **_: logged.update({name: value})
    )
    means = EvaluationMeans()
    for index, size in enumerate(sizes, 1):
        means.add("val/loss", [float(index)])
        means.add(f"val/loss_{size}", [float(index)], "sizes")
        means.add("val/loss_films", [float(index)], "sources")
    means.log(module)
    assert logged.pop("val/loss") == sum(range(1, len(sizes) + 1)) / len(sizes)
    assert list(logged.values()) == parts
    assert not means.sums
