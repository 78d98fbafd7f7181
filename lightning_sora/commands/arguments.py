"""Values of command-line options that several commands take."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from lightning_sora.errors import SoraError

if TYPE_CHECKING:
    import torch


def whole(text: str) -> int:
    """A whole number of at least 1."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be a whole number of at least 1")
    return int(text)


def positive(text: str) -> float:
    """A number between 0 and 1000, such as a rate."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1000:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number between 0 and 1000")
    return value


def usable_device(name: str | None) -> torch.device:
    """The device of a name; CUDA where there is one, if None.

    Raises:
        SoraError: it cannot be used on this machine.
    """
    import torch

    if name is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as problem:
        reason = str(problem).splitlines()[0]
        raise SoraError(f"--device {name} cannot be used here ({reason}); cpu always can") from problem
    return device
