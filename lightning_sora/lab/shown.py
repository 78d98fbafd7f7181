"""Results that are tables in a terminal and in a notebook."""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH = 100  # characters of a line in a notebook
PAGE = "<pre style='white-space:pre;overflow-x:auto;line-height:normal;font-family:monospace'>{code}</pre>"


class Shown(ABC):
    """A result that rich prints as tables, and a notebook shows as the same tables."""

    @abstractmethod
    def tables(self) -> Iterable[RenderableType]:
        """What is shown, in order."""

    def __rich__(self) -> RenderableType:
        from rich.console import Group

        return Group(*self.tables())

    def _repr_html_(self) -> str:
        from rich.console import Console

        console = Console(record=True, file=io.StringIO(), width=WIDTH)
        console.print(self)
        return console.export_html(inline_styles=True, code_format=PAGE)
