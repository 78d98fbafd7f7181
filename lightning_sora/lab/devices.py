"""Where a model runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lightning_sora.errors import SoraError, first_line

if TYPE_CHECKING:
    import torch


def usable_device(device: str | torch.device | None) -> torch.device:
    """The device of a name; CUDA where there is one, if None.

    Raises:
        SoraError: it cannot be used on this machine.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as problem:
        reason = first_line(problem)
        raise SoraError(f"device {str(device)!r} cannot be used here ({reason}); cpu always can") from problem
    return found
