"""Packing clips into sequences, and dealing sequences so that no rank waits."""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch

from lightning_sora.errors import SoraError

#: Width of the model that costs are reckoned for: only the ratio of its linear to its quadratic part matters.
COST_DIM = 1024
#: Batches among which those of like cost are put side by side.
BALANCE_WINDOW = 32


def pack(lengths: Sequence[int], budget: int, lookahead: int) -> list[tuple[int, ...]]:
    """Deals items, in order, to sequences of at most ``budget`` tokens.

    The item that waited longest opens a sequence; then the largest waiting item that still fits is added,
    until none does (best fit, of the ``lookahead`` that wait).

    Returns:
        The items of each sequence; every item is in exactly one.

    Raises:
        SoraError: an item above the budget.
    """
    if any(length > budget for length in lengths):
        raise SoraError(f"a clip of {max(lengths)} tokens exceeds the budget of {budget}; raise it, or lower the size")
    coming = iter(range(len(lengths)))
    waiting: list[tuple[int, int]] = []  # (length, -place), sorted, so that of equal ones the oldest is last

    def refill() -> None:
        while len(waiting) < lookahead and (place := next(coming, None)) is not None:
            bisect.insort(waiting, (lengths[place], -place))

    sequences = []
    refill()
    while waiting:
        oldest = max(range(len(waiting)), key=lambda i: waiting[i][1])
        length, place = waiting.pop(oldest)
        members, left = [-place], budget - length
        refill()
        while (fits := bisect.bisect_right(waiting, (left, 1))) > 0:
            length, place = waiting.pop(fits - 1)
            members.append(-place)
            left -= length
            refill()
        sequences.append(tuple(members))
    return sequences


def cost(lengths: Sequence[int], dim: int = COST_DIM) -> float:
    """FLOPs of a layer over clips of these lengths L: ``24 dim^2 L + 4 dim L^2``, in units of ``4 dim``."""
    return float(sum(length * (6 * dim + length) for length in lengths))


def balanced_order(
    costs: Sequence[float], generator: torch.Generator | None, side_by_side: int, *, lead: int = 0
) -> list[int]:
    """An order of batches in which any ``side_by_side`` of one group cost about the same.

    Ranks take neighbours of the order for a step, so the order, not their number, balances them. Within windows
    of some groups, batches are sorted by cost and dealt to groups, whose order is drawn. Batches of one cost keep
    their order.

    Args:
        generator: of the order of groups; None keeps it by cost.
        side_by_side: batches of a group; ranks should divide it.
        lead: this many come before the first group: costly ones, as are those that are left over at the end.
    """
    order = list(range(len(costs)))
    if len(set(costs)) <= 1 or side_by_side <= 1:
        return order
    dealt = sorted(order[: BALANCE_WINDOW * side_by_side], key=lambda i: (-costs[i], i))[:lead]
    order = [i for i in order if i not in set(dealt)]
    window = BALANCE_WINDOW * side_by_side
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda i: (costs[i], i))
        # The group that may be short comes last, for then all others begin at a multiple of the group.
        groups = [part[i : i + side_by_side] for i in range(0, len(part), side_by_side)]
        whole, rest = (groups, []) if len(groups[-1]) == side_by_side else (groups[:-1], groups[-1:])
        if generator is not None:
            whole = [whole[i] for i in torch.randperm(len(whole), generator=generator).tolist()]
        dealt += [i for group in whole + rest for i in group]
    return dealt
