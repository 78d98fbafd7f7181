"""How a recipe differs from that by which a checkpoint was trained."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_sora.errors import some
from lightning_sora.tracking.flatten import flatten

#: The sections that a checkpoint keeps of its recipe.
KEPT = ("model", "data")
#: Data options that move no clip and no score.
HOW = ("data.num_workers", "data.batch_size")
SHOWN = 6
_ABSENT = "null"


def differences(trained: Mapping[str, Any], recipe: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """The keys of model and data that differ, with their values at the time of the training and now.

    Args:
        trained: the recipe that a checkpoint keeps.
        recipe: that of a command.
    """
    then, now = ({**flatten({part: one.get(part) or {} for part in KEPT})} for one in (trained, recipe))
    found = {}
    for key in sorted(then.keys() | now.keys()):
        pair = then.get(key, _ABSENT), now.get(key, _ABSENT)
        if pair[0] != pair[1] and key not in HOW and "${" not in pair[0]:  # of the environment, which may have changed
            found[key] = pair
    return found


def forgotten(found: Mapping[str, tuple[str, str]], given: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """Those differences that no flag of the command asks for."""
    return {
        key: pair
        for key, pair in found.items()
        if not any(f"{key}.".startswith(f"{flag}.") or f"{flag}.".startswith(f"{key}.") for flag in given)
    }


def flags(found: Mapping[str, tuple[str, str]]) -> str:
    """What to add to a command so that it takes what was trained, as ``--model.dim=96``."""
    shown = [shlex.quote(f"--{key}={then}") for key, (then, _) in found.items()]
    return some(shown, SHOWN, between=" ")


def remedy(checkpoint: Path) -> str:
    """How to name the recipe that a checkpoint was trained by."""
    file = checkpoint.absolute().parent.parent / "fit.yaml"
    kept = os.path.relpath(file) if file.is_file() else "FILE, which its run in mlflow has as recipe/fit.yaml"
    return f"add that, or give --config {kept}"
