"""The parts of a model and their parameters, told as a fit begins."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import nn


class PartsSummary(pl.Callback):
    """Says which parts a model has, how many parameters each, and which are frozen.

    In place of lightning's, which counts FLOPs by an example that these modules do not have: as zero. What a step costs
    is logged as ``cost/flops``.
    """

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        rank_zero_info(summary(pl_module))


def summary(module: nn.Module) -> str:
    """A line for each part that has parameters, and one for all."""
    rows = [(name, type(part).__name__, *_counts(part)) for name, part in parts_of(module)]
    total, learned = _counts(module)
    lines = [
        f"  {name:<24} {kind:<24} {_count(count):>8}{'' if trained else '  frozen'}"
        for name, kind, count, trained in rows
    ]
    return "\n".join(["parameters:", *lines, f"  {_count(learned)} of {_count(total)} learn"])


def parts_of(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts of a module that have parameters; those of its only part, where there is one."""
    inside = [(f"{name}{key}", part) for key, part in module.named_children() if any(True for _ in part.parameters())]
    if len(inside) == 1:
        yield from parts_of(inside[0][1], f"{inside[0][0]}.")
    elif inside:
        yield from inside
    elif name:
        yield name.removesuffix("."), module


def _counts(module: nn.Module) -> tuple[int, int]:
    """Parameters, and those of them that learn; of sharded ones, all."""
    parameters: list[Any] = list(module.parameters())
    sizes = [(getattr(p, "ds_numel", None) or p.numel(), p.requires_grad) for p in parameters]
    return sum(size for size, _ in sizes), sum(size for size, learns in sizes if learns)


def _count(number: int) -> str:
    return get_human_readable_count(number).strip()
