"""The options of the benchmark and of its studies, as YAML."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_sora.documents import read_yaml
from lightning_sora.errors import SoraError

RECIPES = Path(__file__).parents[2] / "recipes" / "sora_tasks"


def read_options(path: Path, keys: Sequence[str], example: Path) -> dict[str, Any]:
    """The options in a file.

    Args:
        keys: those that it must have, and no others.
        example: a file that has them, which an error names.

    Raises:
        SoraError: unreadable, or a key that is missing or unknown.
    """
    told = read_yaml(path)
    if not isinstance(told, dict) or set(told) != set(keys):
        raise SoraError(f"{path} must have the keys {', '.join(keys)}; see {example}")
    return told
