"""What comes with the package, by name: recipes and trained models."""

from __future__ import annotations

import os
from pathlib import Path

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path

#: In a checkout, a link to its recipes; in an installed package, those themselves.
FOLDER = Path(__file__).parent / "recipes"
ABLATIONS = "ablations"
MODELS = Path(__file__).parent / "pretrained"
#: The model that samples where none is named.
MODEL = "world64"


def recipe_path(asked: str | Path, kind: str = "") -> Path:
    """The file of a recipe: a path, or the name of one that comes with the package.

    Args:
        kind: "ablations" for the file of an ablation.

    Returns:
        a path as it is where it has a folder or an ending, or something is there; where there is no recipe of that
        name, too.
    """
    path = local_path(asked)
    if path.suffix or path.name != str(path) or os.path.exists(path):
        return path
    shipped = FOLDER / kind / f"{path.name}.yaml"
    return shipped if os.path.isfile(shipped) else path


def shipped_recipes(kind: str = "") -> list[str]:
    """The names of those that come with the package."""
    return sorted(path.stem for path in (FOLDER / kind).glob("*.yaml"))


def model_path(asked: str | Path) -> Path:
    """The folder of a trained model: a path, or the name of one that comes with the package.

    Returns:
        a path as it is where it has a folder or something is there; where there is no model of that name, too.

    Raises:
        SoraError: the model that samples where none is named does not come with this version.
    """
    path = local_path(asked)
    if path.name != str(path) or os.path.exists(path):
        return path
    shipped = MODELS / path.name
    if os.path.isdir(shipped):
        return shipped
    if path.name == MODEL:
        raise SoraError(
            "no model is named, and none comes with this version; give the path of one, such as --ckpt PATH"
        )
    return path


def is_shipped(asked: str | Path) -> bool:
    """Whether a model is one that comes with the package."""
    return model_path(asked).parent == MODELS
