"""What training has cost so far, in units that arms of an ablation can be compared by."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl

from lightning_sora.lit.last_step import waits
from lightning_sora.lit.module import LitModule
from lightning_sora.spacetime import SpacetimeBatch


class Costs(pl.Callback):
    """Logs ``cost/tokens``, ``cost/flops`` and ``cost/seconds``, all since the first step, with every validation.

    For modules of this package alone: others have no tokens. Tokens and FLOPs are of all ranks; FLOPs are the
    module's own count (:meth:`LitModule.training_flops`).
    Seconds are those between the start and the end of training batches with the wait for the next one,
    validation left out. Kept in checkpoints: a resumed training goes on counting.
    """

    def __init__(self) -> None:
        self.tokens = self.flops = 0
        self.seconds = 0.0
        self._unstepped = (0, 0)  # tokens and FLOPs of batches that wait for their step, which no checkpoint has
        self._since: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: SpacetimeBatch, batch_idx: int
    ) -> None:
        self._tick()
        if isinstance(pl_module, LitModule):
            tokens = pl_module.training_tokens(batch) * trainer.world_size
            flops = pl_module.training_flops(batch) * trainer.world_size
            self.tokens, self.flops = self.tokens + tokens, self.flops + flops
            since = self._unstepped
            self._unstepped = (since[0] + tokens, since[1] + flops) if waits(trainer) else (0, 0)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._tick()
            self._since = None

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit" and not trainer.sanity_checking and isinstance(pl_module, LitModule):
            spent = {"tokens": float(self.tokens), "flops": float(self.flops), "seconds": self.seconds}
            for name, value in spent.items():
                pl_module.log(f"cost/{name}", value, rank_zero_only=True)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._since = time.perf_counter()

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.seconds += now - self._since
        self._since = now

    def state_dict(self) -> dict[str, Any]:
        tokens, flops = self._unstepped
        return {"tokens": self.tokens - tokens, "flops": self.flops - flops, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.flops, self.seconds = state_dict["tokens"], state_dict["flops"], state_dict["seconds"]
