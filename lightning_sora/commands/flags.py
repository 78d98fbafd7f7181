"""Flags that set keys of a recipe or a budget, beside a command's own options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from lightning_sora.documents import parse_yaml
from lightning_sora.errors import SoraError, did_you_mean


def dotted(rest: Sequence[str], parser: argparse.ArgumentParser) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``--budget.X=Y`` says, and what other dotted flags set.

    Raises:
        SoraError: a flag of another form.
    """
    budget: dict[str, Any] = {}
    overrides: dict[str, Any] = {}
    for flag in rest:
        key, equals, value = flag.removeprefix("--").partition("=")
        if not flag.startswith("--") or not equals or "." not in key:
            known = [option for action in parser._actions for option in action.option_strings]
            hint = did_you_mean(flag.partition("=")[0], known)
            raise SoraError(
                f"unexpected {flag!r}; {hint}keys of the recipe are set by --section.key=value, with the equals sign"
            )
        section, _, name = key.partition(".")
        if section == "budget":
            budget[name] = parse_yaml(value, f"--{key}")
        else:
            overrides[key] = value
    return budget, overrides


def assignments(given: list[str]) -> dict[str, str]:
    """Changes to a recipe, each KEY=VALUE, by key."""
    found = {}
    for item in given:
        key, equals, value = item.removeprefix("--").partition("=")
        if not equals:
            raise SoraError(f"{item!r} must be KEY=VALUE, as in data.root=FOLDER")
        found[key] = value
    return found
