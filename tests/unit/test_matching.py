"""Equal budgets: arms agree within a percent, and the solver says what it did."""

from collections.abc import Mapping
from typing import Any

import pytest

from lightning_sora.ablation.matching import Cost, divisible, match, validation_interval
from lightning_sora.ablation.plan import Budget
from lightning_sora.errors import SoraError
from lightning_sora.lab.planning import evenly

BASE = {"model.dit.dim": 96, "model.dit.depth": 4, "model.dit.num_heads": 4, "model.dit.mlp_ratio": 2.67}


def transformer(tokens: int = 1000, share: float = 1.0) -> Any:
    """A transformer's cost in closed form; ``share`` of its attention scores are computed."""

    def measure(adjusted: Mapping[str, Any]) -> Cost:
        size = {**BASE, **adjusted}
        dim, depth = int(size["model.dit.dim"]), int(size["model.dit.depth"])
        hidden = -(-int(dim * size["model.dit.mlp_ratio"]) // 8) * 8
        weights = depth * (4 * dim**2 + 3 * dim * hidden)
        flops = 6 * tokens * weights + int(12 * share * depth * tokens**2 * dim)
        return Cost(weights, flops, tokens, seconds=flops / 1e11)

    return measure


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("by", ["steps", "width", "depth"])
def test_flops_agree_within_a_percent(by: Any, share: float) -> None:
    baseline, steps = transformer()({}), 400
    goal = float(baseline.flops * steps)
    measure = transformer(share=share)
    found = match("arm", Budget("flops", None, by), goal, BASE, steps, measure, validations=4)
    spent = measure(found.adjusted).flops * found.steps
    assert abs(spent / goal - 1) <= 0.01
    assert abs(spent / goal - 1 - found.error) < 1e-9
    assert (found.adjusted == {}) == (by == "steps" or share == 1.0)
    assert validation_interval(found.steps, 4) < found.steps
    if "model.dit.dim" in found.adjusted:
        assert found.adjusted["model.dit.dim"] % 8 == 0  # an even width per head


def test_parameters_agree_within_a_percent() -> None:
    for goal in (3e5, 1e6, 4.2e6):
        for by in ("width", "depth"):
            found = match("arm", Budget("params", goal, by), goal, BASE, 10, transformer())
            assert abs(transformer()(found.adjusted).parameters / goal - 1) <= 0.01
            assert found.steps == 10
            assert "params" in found.said


def test_steps_are_taken_as_they_are() -> None:
    assert match("arm", Budget("steps", 401.0), 401.0, BASE, 10, transformer(), validations=4).steps == 401


def test_tokens_and_seconds_become_steps() -> None:
    assert match("arm", Budget("tokens", 5e5), 5e5, BASE, 10, transformer()).steps == 500
    one = transformer()({}).seconds
    assert match("arm", Budget("seconds", 1000 * one), 1000 * one, BASE, 10, transformer()).steps == 1000


def test_what_cannot_be_met_is_refused_with_what_can() -> None:
    with pytest.raises(SoraError, match="at least 5e"):
        match("arm", Budget("tokens", 1500.0), 1500.0, BASE, 10, transformer())
    with pytest.raises(SoraError, match="match by steps"):
        match("arm", Budget("params", 1e6, "width"), 1e6, {}, 10, transformer())
    with pytest.raises(SoraError, match="cannot be met within"):
        match("arm", Budget("params", 10.0, "width"), 10.0, BASE, 10, transformer())


@pytest.mark.parametrize(("steps", "validations", "interval"), [(400, 4, 100), (401, 4, 401), (6, 4, 2), (3, 9, 1)])
def test_the_last_validation_is_at_the_last_step(steps: int, validations: int, interval: int) -> None:
    assert validation_interval(steps, validations) == interval
    assert steps % interval == 0


def test_steps_are_moved_by_little() -> None:
    assert divisible(401, 4) == 400
    assert divisible(7, 4) == 7


def test_typical_batches_are_of_the_whole_epoch_however_short_it_is() -> None:
    assert evenly(5, 24) == [0, 1, 2, 3, 4]
    assert evenly(48, 24) == list(range(0, 48, 2))
    assert evenly(0, 24) == []
