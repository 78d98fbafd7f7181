"""Equal budgets: what to set in each arm so that all arms have the same of the declared quantity."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lightning_sora.ablation.plan import Budget
from lightning_sora.errors import SoraError

TOLERANCE = 0.01
WIDTH, DEPTH, HEADS, MLP = "model.dit.dim", "model.dit.depth", "model.dit.num_heads", "model.dit.mlp_ratio"
MLP_RANGE = (1.0, 8.0)
BISECTIONS = 24
#: Sizes beyond the two nearest that are tried: the MLP's width moves in steps, too.
NEIGHBOURS = 2


@dataclass(frozen=True)
class Cost:
    """What one arm's model is and what one of its training steps costs.

    Attributes:
        flops, tokens, seconds: per optimizer step, of all ranks; seconds are None where nobody measured them.
    """

    parameters: int
    flops: int
    tokens: int
    seconds: float | None = None


@dataclass(frozen=True)
class Match:
    """One arm under the budget.

    Attributes:
        steps: optimizer steps of each training.
        adjusted: keys that were set, beside the number of steps.
        amount: what the arm has of the budget's quantity.
        error: relative deviation from the budget.
        said: what was done, in words.
    """

    steps: int
    adjusted: Mapping[str, Any] = field(default_factory=dict)
    amount: float = 0.0
    error: float = 0.0
    said: str = ""


#: The cost of an arm with these keys set.
Measure = Callable[[Mapping[str, Any]], Cost]


def total(budget: Budget, cost: Cost, steps: int) -> float:
    """What a training of ``steps`` has of the budget's quantity."""
    if budget.quantity == "params":
        return float(cost.parameters)
    if budget.quantity == "steps":
        return float(steps)
    per_step = getattr(cost, budget.quantity)
    assert per_step is not None, "the planner measures seconds where the budget is in seconds"
    return float(per_step) * steps


def match(
    arm: str,
    budget: Budget,
    goal: float,
    base: Mapping[str, Any],
    steps: int,
    measure: Measure,
    validations: int = 1,
) -> Match:
    """Sets one arm to the goal.

    Args:
        arm: its name, for messages.
        goal: of the budget's quantity.
        base: the recipe's values of :data:`WIDTH`, :data:`DEPTH`, :data:`HEADS` and :data:`MLP`, as far as it has
            them.
        steps: of the base recipe, for budgets that are not met by steps.
        measure: the cost of this arm.
        validations: the number of steps is moved a little to be a multiple of it, unless steps are the budget.

    Raises:
        SoraError: the goal cannot be met within one percent.
    """
    if budget.matched_by == "steps":
        return _by_steps(arm, budget, goal, measure({}), validations)
    return _by_size(arm, budget, goal, base, steps, measure)


def _by_steps(arm: str, budget: Budget, goal: float, cost: Cost, validations: int) -> Match:
    one = total(budget, cost, 1)
    exact = max(1, round(goal / one))
    steps = exact if budget.quantity == "steps" else divisible(exact, validations)
    if abs(one * steps / goal - 1) > TOLERANCE:
        steps = exact
    amount = one * steps
    error = amount / goal - 1
    if abs(error) > TOLERANCE:
        least = one / (2 * TOLERANCE)
        raise SoraError(
            f"arm {arm!r}: one step is {one:.4g} {budget.quantity}, so {goal:.4g} cannot be met within "
            f"{TOLERANCE:.0%}; a budget of at least {least:.4g} can"
        )
    said = "" if budget.quantity == "steps" else f"by steps: {_deviation(budget, error)}"
    return Match(steps, {}, amount, error, said)


def _by_size(arm: str, budget: Budget, goal: float, base: Mapping[str, Any], steps: int, measure: Measure) -> Match:
    """Width or depth as near as its steps allow, then the MLP's width for the rest."""
    key = WIDTH if budget.matched_by == "width" else DEPTH
    missing = [k for k in (key, MLP) if k not in base]
    if missing:
        raise SoraError(
            f"budget.by={budget.matched_by} sets {key} and {MLP}, but the base recipe's model has no "
            f"{', '.join(missing)}; match by steps"
        )
    grain = _grain(base) if key == WIDTH else 1
    ratio = float(base[MLP])

    def amount(units: int, ratio: float) -> float:
        try:
            return total(budget, measure({key: units * grain, MLP: ratio}), steps)
        except SoraError:  # too small to be built: a head too narrow, a pattern longer than the model
            return -math.inf

    low = high = max(1, int(base[key]) // grain)
    while amount(high, ratio) < goal:
        low, high = high, 2 * high
        if high * grain > 1 << 20:
            raise SoraError(f"arm {arm!r}: {goal:.4g} {budget.quantity} needs a {budget.matched_by} beyond 2^20")
    while low > 1 and amount(low, ratio) >= goal:
        low, high = low // 2, low
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if amount(middle, ratio) < goal else (low, middle)
    candidates = []
    for units in range(max(1, low - NEIGHBOURS), high + NEIGHBOURS + 1):
        if amount(units, ratio) > 0:
            found = _ratio(lambda r, units=units: amount(units, r) / goal - 1, ratio)  # type: ignore[misc]
            candidates.append((abs(found[0] - ratio), units * grain, *found))
    fitting = [c for c in candidates if abs(c[3]) <= TOLERANCE]
    if not fitting:
        nearest = min(candidates, key=lambda c: abs(c[3]))
        raise SoraError(
            f"arm {arm!r}: {goal:.4g} {budget.quantity} cannot be met within {TOLERANCE:.0%} by {budget.matched_by}; "
            f"the nearest is {key}={nearest[1]} with {MLP}={nearest[2]:.3f}, {nearest[3]:+.1%}; choose another budget"
        )
    _, size, ratio_found, error = min(fitting)
    adjusted = {k: v for k, v in {key: size, MLP: round(ratio_found, 4)}.items() if v != base[k]}
    changes = ", ".join(f"{k}={v}" for k, v in adjusted.items()) or "nothing set"
    return Match(steps, adjusted, goal * (1 + error), error, f"{changes}, {_deviation(budget, error)}")


def _grain(base: Mapping[str, Any]) -> int:
    """Steps of the width: heads stay even for rotary positions, and divisible by four where they are."""
    heads = int(base[HEADS])
    return heads * (4 if int(base[WIDTH]) // heads % 4 == 0 else 2)


def _ratio(error: Callable[[float], float], ratio: float) -> tuple[float, float]:
    """The MLP's ratio with the smallest error, and that error; the recipe's own where it is good enough."""
    best = (ratio, error(ratio))
    if abs(best[1]) <= TOLERANCE / 4:
        return best
    low, high = MLP_RANGE
    for _ in range(BISECTIONS):
        middle = round((low + high) / 2, 4)
        deviation = error(middle)
        if abs(deviation) < abs(best[1]):
            best = (middle, deviation)
        low, high = (middle, high) if deviation < 0 else (low, middle)
        if abs(best[1]) <= TOLERANCE / 4 or high - low < 1e-3:
            break
    return best


def _deviation(budget: Budget, error: float) -> str:
    return f"{budget.quantity} {error:+.2%}"


def validation_interval(steps: int, validations: int) -> int:
    """Steps between validations, so that the last one is at the last step.

    The largest number up to ``validations`` that divides ``steps``; for a prime, one.
    """
    count = max(n for n in range(1, min(validations, steps) + 1) if steps % n == 0)
    return steps // count


def divisible(steps: int, validations: int) -> int:
    """``steps`` moved to the nearest multiple of as many validations as half the tolerance allows."""
    for count in range(min(validations, steps), 1, -1):
        near = max(1, round(steps / count)) * count
        if abs(near / steps - 1) <= TOLERANCE / 2:
            return near
    return steps
