"""What `compare` and `ablate` print of verdicts."""

from __future__ import annotations

import sys
from pathlib import Path

from lightning_sora.lab.comparing import Verdicts


def show(verdicts: Verdicts, folder: Path | None, *, table: bool = True, browser: bool = False) -> None:
    """Prints the table and what is beside it, and writes the report.

    Args:
        folder: of the report; None for none.
        browser: whether to open it.
    """
    if table:
        from rich.console import Console

        Console(width=None if sys.stdout.isatty() else 160).print(verdicts)
    if verdicts.note:
        sys.stderr.write(f"note: {verdicts.note}\n")
    if folder is not None:
        page = verdicts.report(folder)
        sys.stderr.write(f"report: {page}\n")
        if browser:
            import webbrowser

            webbrowser.open(page.absolute().as_uri())
