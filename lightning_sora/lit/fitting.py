"""Whether a training step fits into memory, asked at its first batch, before anything of it is allocated."""

from __future__ import annotations

import lightning.pytorch as pl

from lightning_sora.models.denoisers.base import Denoiser
from lightning_sora.models.memory_estimate import TrainingMemory, check_training_fits
from lightning_sora.spacetime import SpacetimeBatch
from lightning_sora.specs import Spec


def check_step_fits(
    module: pl.LightningModule, denoiser: Denoiser, batch: SpacetimeBatch, optimizer: str, average: bool
) -> TrainingMemory:
    """Refuses a training whose first step would not fit.

    Args:
        module: that trains the denoiser.
        optimizer: its spec.
        average: whether a moving average is yet to be made.

    Raises:
        SoraError: it needs more memory than there is; what helps is named.
    """
    made = module.optimizers(use_pl_optimizer=False)
    begun = any(one.state for one in (made if isinstance(made, list) else [made]))  # of a resumed one they are there
    return check_training_fits(
        denoiser,
        max(batch.budget, batch.layout.total),
        states=0 if begun else 2 if "adam" in Spec.parse(optimizer).name else 1,
        average=average,
        checkpoint=denoiser.checkpoint,
        autocast="mixed" in str(module.trainer.precision),
        device=module.device,
    )
