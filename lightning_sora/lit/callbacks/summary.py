"""The table of a model's parts that a fit begins with."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.callbacks import RichModelSummary
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count
from rich.console import Console
from rich.table import Table


class Summary(RichModelSummary):
    """Prints the parts of a module with their parameters, when a fit begins.

    Lightning's own also counts FLOPs, without an input: they are always 0. A fit logs its FLOPs as ``cost/flops``.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Prints what lightning found out.

        Args:
            summary_data: columns, as (heading, one text for each part).
            total_parameters, trainable_parameters: of the whole module.
            model_size, total_training_modes, total_flops, summarize_kwargs: not shown.
        """
        shown = [(name.strip(), cells) for name, cells in summary_data if name not in ("FLOPs", "Mode", " ")]
        table = Table()
        for name, _ in shown:
            table.add_column(name, justify="right" if name.startswith("Params") else "left")
        for row in zip(*(cells for _, cells in shown), strict=True):
            table.add_row(*row)
        console = Console()
        console.print(table)
        frozen = total_parameters - trainable_parameters
        counts = " and ".join(f"{get_human_readable_count(n).strip()} {what}" for n, what in (
            (trainable_parameters, "trained"), (frozen, "frozen"),
        ))  # fmt: skip
        console.print(f"parameters: {counts}")
