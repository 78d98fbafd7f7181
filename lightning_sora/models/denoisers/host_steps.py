"""Steps of a DDPM as times of ours, and the boxes that rotary positions are fitted into: of CogVideoX."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from lightning_sora.errors import SoraError
from lightning_sora.models.diffusers_folder import Stored, diffusers_class

#: What of the configuration of a scheduler says how noisy each of its steps is.
BETAS = (
    "num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr",
    "snr_shift_scale",
)  # fmt: skip


def noise_angles(scheduler: Mapping[str, Any]) -> Float[Tensor, " steps"]:
    """``atan(sigma / alpha)`` of each step of a DDPM, from its betas, which rises from 0 to a quarter turn.

    Args:
        scheduler: those of ``BETAS`` that its scheduler_config.json names.

    Raises:
        SoraError: something else is named, or diffusers cannot make a schedule of it.
    """
    if other := sorted(set(scheduler) - set(BETAS)):
        raise SoraError(f"scheduler={{{other[0]!r}: ...}} says nothing of betas; those that do: {', '.join(BETAS)}")
    try:
        kept: Tensor = diffusers_class("CogVideoXDDIMScheduler")(**scheduler).alphas_cumprod.double().clamp(0, 1)
    except (NotImplementedError, TypeError, ValueError) as problem:
        raise SoraError(
            f"no schedule can be made of scheduler={dict(scheduler)!r} ({problem}); correct it"
        ) from problem
    return torch.atan2((1 - kept).sqrt(), kept.sqrt())


def step_of(t: Float[Tensor, " clips"], angles: Float[Tensor, " steps"]) -> Float[Tensor, " clips"]:
    """The step of a DDPM, a fraction between two of them, whose noise level is that of the straight path at ``t``:
    ``sigma / alpha = t / (1 - t)``. Times before its first step and after its last are those."""
    angle = torch.atan2(t.double(), 1 - t.double())
    table = angles.to(t.device)
    below = (torch.searchsorted(table, angle, right=True) - 1).clamp(0, len(table) - 2)
    part = (angle - table[below]) / (table[below + 1] - table[below])
    return (below + part.clamp(0, 1)).float()


def fitted(size: tuple[int, int], within: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Two corners, top left and bottom right, of the largest box of the shape of ``size`` in the middle of another."""
    (height, width), (most_high, most_wide) = size, within
    if height / width > most_high / most_wide:
        made = most_high, round(most_high / height * width)
    else:
        made = round(most_wide / width * height), most_wide
    top, left = round((most_high - made[0]) / 2), round((most_wide - made[1]) / 2)
    return (top, left), (top + made[0], left + made[1])


def scheduler_beside(stored: Stored) -> dict[str, Any] | None:
    """The betas of the scheduler in the pipeline that a transformer is of; None where there is none.

    Raises:
        SoraError: it cannot be read, or its model predicts something else than ``v``.
    """
    place = Path(stored.place)
    if place.is_dir():
        file = place.parent / "scheduler" / "scheduler_config.json"
        if not file.is_file():
            return None
        try:
            told = dict(json.loads(file.read_text()))
        except (OSError, ValueError, TypeError) as problem:
            raise SoraError(f"{file} cannot be read ({problem}); copy or download the folder again") from problem
    else:
        try:
            told = diffusers_class("CogVideoXDDIMScheduler").load_config(
                stored.place, subfolder="scheduler", revision=stored.revision
            )
        except (OSError, ValueError):
            return None
    predicts = told.get("prediction_type", "epsilon")
    if predicts != "v_prediction":
        raise SoraError(
            f"the scheduler beside {stored.path!r} is of prediction_type={predicts!r}, and CogVideoX predicts "
            "'v_prediction'; name its betas by scheduler={...}"
        )
    return {name: told[name] for name in BETAS if name in told}
