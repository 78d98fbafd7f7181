"""A folder to start a study from."""

from __future__ import annotations

import os
import re
from pathlib import Path

from lightning_sora.errors import SoraError
from lightning_sora.names import local_path
from lightning_sora.texts import read_text
from lightning_sora.writing import check_folder, whole

FOLDER = Path(__file__).parent / "study"
#: Name in the study -> what it is made of; a block is no module of this package.
FILES = {
    "README.md": "README.md",
    "block.py": "block.py.txt",
    "recipe.yaml": "recipe.yaml",
    "ablation.yaml": "ablation.yaml",
}


def new_study(folder: str | Path) -> list[Path]:
    """Writes a recipe, a block, an ablation of the two, and what to do with them.

    Args:
        folder: that is not there, or empty; its name is that of the study.

    Returns:
        the files.

    Raises:
        SoraError: there is something in the folder, its name is none for an experiment, or it cannot be written to.
    """
    place = local_path(folder)
    name = place.resolve().name
    if not re.fullmatch(r"[\w-]+", name):
        raise SoraError(f"{name!r} is no name for a study; use letters, digits, _ and -")
    if os.path.exists(place) and (not place.is_dir() or any(place.iterdir())):
        raise SoraError(f"{folder} is there already; give a new folder")
    check_folder("the study", place)
    written = []
    for file, template in FILES.items():
        written.append(place / file)
        with whole(written[-1]) as partial:
            Path(partial).write_text(read_text(FOLDER / template).replace("STUDY", name))
    return written
