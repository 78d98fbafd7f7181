"""Scores of single clips, and what they mean, kept with the run: what pairs two runs clip by clip."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from lightning_sora.lit.callbacks.evaluate import evaluate_of
from lightning_sora.lit.module import LitModule
from lightning_sora.metrics.protocol import ProtocolCard
from lightning_sora.sealing import seal_json, write_whole


class ClipScores(pl.Callback):
    """Keeps the per-clip scores of the last validation or test, with the protocol that they were measured by.

    ``clips/SPLIT.json`` holds ``{"step": n, "scores": {metric: {clip: value}}}`` and ``protocol/SPLIT.json`` what
    :meth:`LitModule.protocol` says, both under the trainer's ``default_root_dir`` and with every logger that has
    ``log_files``.
    """

    def on_validation_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._keep(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._keep(trainer, pl_module, "test")

    def _keep(self, trainer: pl.Trainer, pl_module: pl.LightningModule, split: str) -> None:
        if not isinstance(pl_module, LitModule):
            return
        # On every rank, and before the card is written, whichever callback comes first.
        evaluate = evaluate_of(trainer) if split == "test" else None
        evaluation = None if evaluate is None else evaluate.finish(pl_module)
        scores = pl_module.clip_scores
        if trainer.world_size > 1:  # every rank, before any leaves
            everyone: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everyone, scores)
            scores = {name: {} for one in everyone for name in one}
            for one in everyone:
                for name, values in one.items():
                    scores[name].update(values)
        pl_module.clip_scores = {}
        if trainer.sanity_checking or not trainer.is_global_zero or not scores:
            return
        protocol = pl_module.protocol(split)
        counted = {name: len(values) for name, values in scores.items()}
        self._write(trainer, "clips", split, {"step": trainer.global_step, "scores": scores})
        told = getattr(getattr(trainer, "datamodule", None), "fingerprint", None)
        data = {} if told is None else {"data": told(split)}
        how = {} if evaluation is None else {"evaluation": dict(evaluation.fields)}
        card = ProtocolCard({**protocol, **data, **how, "clips": counted})
        self._write(trainer, "protocol", split, {**card.fields, "protocol_id": card.id})

    @staticmethod
    def _write(trainer: pl.Trainer, folder: str, split: str, content: dict[str, Any]) -> None:
        path = Path(trainer.default_root_dir) / folder / f"{split}.json"
        write_whole(path, seal_json(content))
        for logger in trainer.loggers:
            log_files = getattr(logger, "log_files", None)
            if log_files is not None:
                log_files(path, folder)
