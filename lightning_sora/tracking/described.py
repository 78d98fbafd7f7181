"""A run in words for mlflow's pages: its name and description say what makes it differ from its recipe."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from lightning_sora.redaction import redact, redacted
from lightning_sora.tracking.flatten import ELSEWHERE

#: The tag that mlflow's pages show as a run's description; it reads markdown.
DESCRIPTION = "mlflow.note.content"
#: The tag that holds the changed keys, for the columns that ``lightning-sora ui`` shows.
CHANGED = "recipe.changed"
#: Flags that are no keys of a recipe, or change nothing but what is told.
BESIDE = ("config", "c", "plugins", "plugins+", "trainer.logger", "trainer.enable_model_summary")
#: The picture of a gallery that a description shows.
SHEET = "contact_sheet.png"
NAME_LENGTH = 60
CLAIM_LENGTH = 2000
CHANGES_LENGTH = 2000
_SHOWN = "![contact sheet]("


class Described:
    """What a run is called and how it is described.

    Args:
        changes: the keys that the command line sets beside the recipe, with their values.
        claim: the comment that the recipe opens with.
    """

    def __init__(self, changes: Mapping[str, str] | None = None, claim: str = "") -> None:
        self.changes: dict[str, str] = redacted(dict(changes or {}))
        told = ", ".join(f"`{key}={value}`" for key, value in self.changes.items())[:CHANGES_LENGTH]
        said = redact(claim)[:CLAIM_LENGTH]
        parts = [f"Changed: {told}\n" if told else "", f"```text\n{said}\n```\n" if said else ""]
        self.text = "\n".join(part for part in parts if part)
        self.sheet = ""

    def name(self, recipe: str, ending: str) -> str:
        """``RECIPE-KEY=VALUE,KEY=VALUE-ENDING``, keys by their last part; those without room are counted.

        Example:
            >>> Described({"model.dim": "96"}).name("world_dit", "seed0")
            'world_dit-dim=96-seed0'
        """
        shown: list[str] = []
        for key, value in self.changes.items():
            one = f"{key.rpartition('.')[2]}={value}"
            if sum(map(len, shown)) + len(one) > NAME_LENGTH:
                break
            shown.append(one)
        if more := len(self.changes) - len(shown):
            shown.append(f"{more} more" if shown else f"{more} changed")
        return "-".join(part for part in (recipe, ",".join(shown), ending) if part)

    def tags(self) -> dict[str, str]:
        """The tags of a run that begins."""
        found = {DESCRIPTION: self.text, CHANGED: " ".join(self.changes)[:CHANGES_LENGTH]}
        return {key: value for key, value in found.items() if value}

    def rejoin(self, tags: Mapping[str, str]) -> None:
        """Goes on with the description that a run has."""
        self.text = tags.get(DESCRIPTION, "")

    def note(self, path: Path, folder: str) -> None:
        """Takes note of files that the run keeps under an artifact folder: the last contact sheet is shown."""
        if (path / SHEET).is_file():
            self.sheet = f"{folder}/{SHEET}"

    def last_tags(self, run_id: str) -> dict[str, str]:
        """The tags of a run that ends: its description with the last contact sheet, in place of an earlier one."""
        if not self.sheet:
            return {}
        kept = re.sub(rf"^{re.escape(_SHOWN)}[^\n]*$", "", self.text, flags=re.MULTILINE).rstrip()
        return {DESCRIPTION: f"{kept}\n\n{_SHOWN}get-artifact?path={self.sheet}&run_uuid={run_id})\n".lstrip()}


def changes(arguments: Sequence[str]) -> dict[str, str]:
    """The keys that a command line sets beside its recipes, with their values as they are written there.

    Args:
        arguments: from the command on.

    Example:
        >>> changes(["fit", "--config", "R.yaml", "--model.dim=96", "--trainer.max_steps", "10"])
        {'model.dim': '96', 'trainer.max_steps': '10'}
    """
    found: dict[str, str] = {}
    flag = ""
    for argument in arguments:
        if argument.startswith("--") or argument == "-c":
            flag, equals, value = argument.lstrip("-").partition("=")
            flag = flag.replace(".init_args", "")
            if flag in BESIDE or flag.startswith(ELSEWHERE):
                flag = ""
            elif equals:
                found[flag], flag = value, ""
        elif flag:
            found[flag], flag = argument, ""
    return found


def claim(recipe: str) -> str:
    """The comment that a recipe opens with; empty where it has none."""
    lines = []
    for line in recipe.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:].removeprefix(" ").rstrip())
    return "\n".join(lines).strip()
