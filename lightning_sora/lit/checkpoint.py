"""Checkpoints as files: read without running code in them, checked, and what to do where they cannot be used."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from lightning_sora.errors import SoraError, WeightsMissing
from lightning_sora.names import local_path
from lightning_sora.redaction import from_environment
from lightning_sora.sealing import verify_archive

#: What to do about a damaged checkpoint.
REMEDY = "copy it again, or give another checkpoint, such as best.ckpt or an earlier one"


def remedy_of(problem: SoraError) -> str:
    """What to do where a checkpoint cannot be rebuilt, behind what is wrong."""
    if isinstance(problem, WeightsMissing):
        return "; where its pretrained folder was moved, say where to: ls.load(..., base='DIR'), export --base DIR"
    if "unknown " in str(problem):
        return "; if a part of it is from a plugin, give that by --plugins FILE"
    return ""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """A checkpoint of this package, read without running any code in it.

    Raises:
        SoraError: no such file, damaged, unreadable, or not a checkpoint of this package.
    """
    path = local_path(path)
    if not os.path.isfile(path):
        raise WeightsMissing(f"no checkpoint at {path}; give the path of a .ckpt file that `fit` wrote")
    verify_archive(path, REMEDY)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as problem:
        raise SoraError(
            f"{path} cannot be read as a checkpoint ({type(problem).__name__}); it is damaged, cut short or something "
            "else: give a .ckpt file that `lightning-sora fit` wrote"
        ) from problem
    if not isinstance(checkpoint, dict) or "module" not in checkpoint:
        raise SoraError(f"{path} is not a checkpoint of lightning_sora; give one that `lightning-sora fit` wrote")
    try:
        checkpoint["hyper_parameters"] = from_environment(checkpoint.get("hyper_parameters", {}))
    except KeyError as missing:
        raise SoraError(f"{path} was trained with a value of the environment: set {missing} as it was then") from None
    return checkpoint


def check_module(checkpoint: dict[str, Any], expected: str) -> None:
    """Raises SoraError if a checkpoint is of another module than expected."""
    found = checkpoint.get("module")
    if found != expected:
        raise SoraError(f"the checkpoint holds a {found}, not a {expected}; give the checkpoint of a {expected} run")
