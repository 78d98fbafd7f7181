"""PredictionWriter: keeps what ``predict`` makes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from lightning_sora import media
from lightning_sora.errors import SoraError
from lightning_sora.sealing import write_whole
from lightning_sora.spacetime import SpacetimeBatch
from lightning_sora.writing import unwritable


class PredictionWriter(pl.Callback):
    """Writes each prediction as an MP4, and ``predictions.jsonl`` that names the clip and caption of each.

    Files go under ``predictions`` in the trainer's ``default_root_dir``; those of an earlier prediction are
    replaced where they bear the same name. Predictions are lists of videos (uint8 [frames height width 3]), one
    per clip of the batch.
    """

    def on_predict_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            folder = _folder(trainer)
            write_whole(folder / "predictions.jsonl", b"")
        trainer.strategy.barrier("prediction folder")

    def on_predict_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: SpacetimeBatch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not isinstance(outputs, Sequence) or len(outputs) != len(batch):
            raise SoraError(
                f"{type(pl_module).__name__}.predict_step gave a {type(outputs).__name__} for {len(batch)} clips; "
                "it must give a list of one video per clip"
            )
        rows = []
        for video, clip, caption, fps in zip(outputs, batch.ids, batch.captions, batch.fps, strict=True):
            file = f"{_file_name(clip)}.mp4"
            media.write_mp4(_folder(trainer) / file, video, fps)
            rows.append(json.dumps({"id": clip, "caption": caption, "file": file}, ensure_ascii=False) + "\n")
        # One write per batch: ranks share the file.
        path = _folder(trainer) / "predictions.jsonl"
        try:
            with path.open("a", encoding="utf-8") as table:
                table.write("".join(rows))
        except OSError as problem:
            raise unwritable(path, problem) from problem


def _folder(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "predictions"


def _file_name(clip: str) -> str:
    """The id of a clip as a file name; where that changes it, a hash keeps it apart from others."""
    name = re.sub(r"[^\w-]+", "_", clip, flags=re.ASCII)[:80]
    return name if name == clip else f"{name}-{hashlib.blake2b(clip.encode(), digest_size=4).hexdigest()}"
