"""The files of a fit's checkpoints: which fit they are of, wherever they were moved, and copies of them."""

from __future__ import annotations

import logging
import os
import pickle
import shutil
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from lightning_sora.writing import part_of, unwritable

log = logging.getLogger(__name__)


def told_in(path: Path, key: str) -> dict[str, Any] | None:
    """What a callback had told of itself in a checkpoint; None for a file that cannot be read or has none of it."""
    file = path / "meta.pt" if path.is_dir() else path  # of a sharded checkpoint
    try:
        checkpoint = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError):
        return None
    found = checkpoint.get("callbacks", {}).get(key) if isinstance(checkpoint, dict) else None
    return found if isinstance(found, dict) else None


def fit_of(told: dict[str, Any]) -> str:
    """The name of the fit that a checkpoint is of; earlier versions told their folder alone."""
    return str(told.get("fit") or told["folder"])


def fits_in(folder: Path, key: str) -> set[str]:
    """The fits that the checkpoints in a folder are of."""
    return {fit_of(told) for path in folder.glob("*.ckpt") if (told := told_in(path, key)) is not None}


def find(name: str, places: Iterable[Path], key: str, fit: str) -> tuple[Path, dict[str, Any]] | None:
    """The first checkpoint of this name and fit, with what it tells."""
    for place in places:
        told = told_in(place / name, key)
        if told is not None and fit_of(told) == fit:
            return place / name, told
    return None


def duplicate(source: Path, target: Path) -> None:
    """Gives a checkpoint a second name, at once or not at all.

    Raises:
        SoraError: the disk is full, or nothing can be written there.
    """
    part = part_of(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():  # a sharded checkpoint
            shutil.copytree(source, part)
            shutil.rmtree(target, ignore_errors=True)
        else:
            # A second name suffices: checkpoints are replaced, never written into.
            try:
                os.link(source, part)
            except OSError:
                shutil.copyfile(source, part)
        part.replace(target)
    except OSError as problem:
        raise unwritable(target, problem) from problem


def set_aside(folder: Path) -> Path:
    """Renames a folder of checkpoints, after the moment of the last one; where they are now."""
    files = sorted(folder.glob("*.ckpt"))
    if not files:
        return folder
    moment = time.strftime("%Y%m%d-%H%M%S", time.localtime(max(file.stat().st_mtime for file in files)))
    target = folder.with_name(f"{folder.name}-{moment}")
    count = 1
    while target.exists():
        count += 1
        target = folder.with_name(f"{folder.name}-{moment}-{count}")
    folder.rename(target)
    log.warning("checkpoints of an earlier fit are now in %s", target)
    return target
