"""Tokens per second, and the memory peak."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_sora.lit.module import LitModule
from lightning_sora.memory import peak_memory_gib
from lightning_sora.spacetime import SpacetimeBatch


class Speed(pl.Callback):
    """Logs what training costs: tokens and clips per second (all ranks), and peak memory.

    Args:
        every_n_steps: how often, in batches; the first interval, which holds one-off costs, is not logged.
    """

    def __init__(self, every_n_steps: int = 10) -> None:
        self.every_n_steps = every_n_steps
        self._tokens = self._clips = self._batches = 0
        self._since: float | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._tokens = self._clips = 0
        self._since = None

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: SpacetimeBatch, batch_idx: int
    ) -> None:
        self._tokens += pl_module.training_tokens(batch) if isinstance(pl_module, LitModule) else batch.layout.total
        self._clips += len(batch)
        self._batches += 1
        if self._batches % self.every_n_steps:
            return
        now = time.perf_counter()
        if self._since is not None:
            seconds = (now - self._since) / trainer.world_size
            pl_module.log("speed/tokens_per_s", self._tokens / seconds, prog_bar=True, rank_zero_only=True)
            pl_module.log("speed/clips_per_s", self._clips / seconds, rank_zero_only=True)
            pl_module.log("speed/peak_memory_gib", peak_memory_gib(), rank_zero_only=True)
            if torch.cuda.is_available():
                peak = torch.cuda.max_memory_allocated() / (1 << 30)
                pl_module.log("speed/peak_cuda_memory_gib", peak, rank_zero_only=True)
        self._tokens = self._clips = 0
        self._since = now

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._since = None  # validation is no part of training's speed
        self._tokens = self._clips = 0
