"""Networks that a later command needs and training does without: a judge's, an expander."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypeVar

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from lightning_sora.errors import WeightsMissing

log = logging.getLogger(__name__)

T = TypeVar("T")


class Awaited:
    """What of a recipe's networks was not there when the module was made, and which commands cannot be run without."""

    def __init__(self) -> None:
        self._missing: list[tuple[WeightsMissing, tuple[str, ...]]] = []

    def make(self, maker: Callable[[], T], *commands: str) -> T | None:
        """What the maker makes, or None where its weights are missing; other errors are passed on.

        Args:
            commands: of "test" and "predict", those that need it.
        """
        try:
            return maker()
        except WeightsMissing as problem:
            self._missing.append((problem, commands))
            return None

    def settle(self, command: str) -> None:
        """Says what is missing as a training begins, and refuses a command that needs it.

        Raises:
            WeightsMissing: so.
        """
        for problem, commands in self._missing:
            if command in commands:
                raise problem
            if command == "fit":
                rank_zero_only(log.warning)(
                    "`fit` does without it, but `%s` will need it: %s", "` and `".join(commands), problem
                )
