"""The page of the command line: what every command says of itself under --help."""

from __future__ import annotations

import contextlib
import io
import os

from lightning_sora.cli import ABLATE, LIGHT, TRAINING, main

PARTS = {"data": ("data inspect", "data check", "data cache")}


def text() -> str:
    """Markdown of all commands."""
    found = [
        "# Command line",
        "What each command says of itself; `lightning-sora COMMAND --help` prints the same.",
        "```text\n" + said() + "```",
        "## Commands that run a recipe",
        "\n".join(f"- `lightning-sora {name}`: {what}" for name, what in TRAINING.items()),
        "They take `--config FILE`, as often as you like, and any key of the recipe as a flag. "
        "`lightning-sora fit --config FILE --help` lists the keys; "
        "[Write and change recipes](how_to/recipes.md) tells more.",
    ]
    for name in (*ABLATE, *LIGHT):
        for command in PARTS.get(name, (name,)):
            found += [f"## {command}", "```text\n" + said(*command.split()) + "```"]
    return "\n\n".join(found) + "\n"


def said(*command: str) -> str:
    """What a command prints under --help."""
    out, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "90"
    try:
        with contextlib.redirect_stdout(out):
            status = main([*command, "--help"])
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
    assert status == 0, command
    return out.getvalue()
